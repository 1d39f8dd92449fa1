//! The Python that is sent to every interpreter that we drive.

/// The shim's modules, in the order in which they are run.
pub(crate) const PROGRAM: [(&str, &str); 18] = [
    // Before anything is imported, so that the SDK itself profits.
    ("updraft_bytecode", include_str!("shim/bytecode.py")),
    (
        "updraft_old_modules",
        concat!("TABLE = '''", include_str!("shim/old_modules.txt"), "'''"),
    ),
    ("updraft_notes", include_str!("shim/notes.py")),
    ("updraft_dependencies", include_str!("shim/dependencies.py")),
    ("updraft_stand_ins", include_str!("shim/stand_ins.py")),
    ("updraft_old_names", include_str!("shim/old_names.py")),
    ("updraft_compat", include_str!("shim/compat.py")),
    ("updraft_containers", include_str!("shim/containers.py")),
    ("updraft_timetables", include_str!("shim/timetables.py")),
    ("updraft_listeners", include_str!("shim/listeners.py")),
    ("updraft_mutations", include_str!("shim/mutations.py")),
    ("updraft_deadlines", include_str!("shim/deadlines.py")),
    ("updraft_partitions", include_str!("shim/partitions.py")),
    ("updraft_bundles", include_str!("shim/bundles.py")),
    ("updraft_triggers", include_str!("shim/triggers.py")),
    ("updraft_children", include_str!("shim/children.py")),
    ("updraft_native", include_str!("shim/native.py")),
    ("updraft_fork_server", include_str!("shim/fork_server.py")),
];
/// What stands on the command line: it runs the modules of the first packet it is sent, so that a list of processes stays
/// readable. The working directory, which `-c` puts first on the path, is taken off before anything is imported: a file
/// there could stand for any module.
pub(crate) const LOADER: &str = "import sys
if sys.path[:1] == ['']: del sys.path[0]
import json, os, types
for name, source in json.loads(os.read(0, 1 << 20)):
    sys.modules[name] = module = types.ModuleType(name)
    exec(compile(source, name, 'exec'), module.__dict__)";
