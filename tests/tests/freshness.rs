//! A stored DAG follows what its file reads, and nothing is parsed while nothing changes.

use harness::{Api, Installation, Process, eventually};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(60);
/// In which a DAG follows.
const BOUND: Duration = Duration::from_secs(2);
/// Begin of every file.
const HEAD: &str = "import glob, importlib, json, os, pathlib, sys
from airflow.sdk import DAG, Connection, Variable
from airflow.providers.standard.operators.bash import BashOperator as Bash
HERE = pathlib.Path(__file__).parent
";

/// Makes it so that an input has these names.
type Write = Box<dyn Fn(&Place<'_>, &[String])>;

/// A way in which a DAG file reads the names of its tasks.
struct Input {
    /// Of the DAG and its file.
    name: String,
    /// Python that sets NAMES.
    read: String,
    /// Sets them from outside.
    write: Write,
}

/// Where inputs live.
struct Place<'a> {
    dags: PathBuf,
    outside: PathBuf,
    api: &'a Api,
}

fn put(path: &Path, text: &str) {
    std::fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
    std::fs::write(path, text).expect("a file");
}

fn quoted(names: &[String]) -> String {
    json!(names).to_string()
}

/// A few numbers that are the same in every run of the tests.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % sides
    }
}

/// Names of tasks: one to three.
fn names(dice: &mut Dice) -> Vec<String> {
    let count = 1 + dice.roll(3);
    (0..count)
        .map(|at| format!("t{at}_{}", dice.roll(100_000)))
        .collect()
}

/// Reads of one file, whole and in parts, within the DAG folder and outside of it.
fn of_files(dice: &mut Dice) -> Vec<Input> {
    let reads = [
        ("open", "NAMES = json.loads(open(FILE).read())"),
        ("read_text", "NAMES = json.loads(pathlib.Path(FILE).read_text())"),
        ("yaml", "import yaml; NAMES = yaml.safe_load(open(FILE))"),
        (
            "os_open",
            "f = os.open(FILE, os.O_RDONLY); NAMES = json.loads(os.read(f, 9999)); os.close(f)",
        ),
        (
            "optional",
            "NAMES = json.loads(open(FILE).read()) if os.path.exists(FILE) else ['none']",
        ),
        (
            "is_file",
            "p = pathlib.Path(FILE); NAMES = json.loads(p.read_bytes()) if p.is_file() else ['none']",
        ),
        (
            "fallback",
            "try:\n    NAMES = json.load(open(FILE))\nexcept FileNotFoundError:\n    NAMES = ['none']",
        ),
    ];
    let mut inputs = Vec::new();
    for (kind, read) in reads {
        let is_outside = dice.roll(2) == 0;
        let file = format!("{kind}_{}/input.json", dice.roll(1000));
        let base = if is_outside {
            "HERE.parent / 'outside'"
        } else {
            "HERE / 'inputs'"
        };
        let path = file.clone();
        inputs.push(Input {
            name: format!("file_{kind}"),
            read: format!("FILE = str({base} / '{file}')\n{read}"),
            write: Box::new(move |place, names| {
                let folder = if is_outside {
                    place.outside.clone()
                } else {
                    place.dags.join("inputs")
                };
                put(&folder.join(&path), &quoted(names));
            }),
        });
    }
    inputs
}

/// Reads of the names in a folder.
fn of_folders(dice: &mut Dice) -> Vec<Input> {
    let reads = [
        ("listdir", "NAMES = [n[:-4] for n in sorted(os.listdir(FOLDER))]"),
        (
            "scandir",
            "NAMES = sorted(e.name[:-4] for e in os.scandir(FOLDER) if e.is_file())",
        ),
        (
            "glob",
            "NAMES = [pathlib.Path(n).stem for n in sorted(glob.glob(FOLDER + '/*.sql'))]",
        ),
        (
            "path_glob",
            "NAMES = [p.stem for p in sorted(pathlib.Path(FOLDER).glob('*.sql'))]",
        ),
        (
            "rglob",
            "NAMES = [p.stem for p in sorted(pathlib.Path(FOLDER).parent.rglob('*.sql'))]",
        ),
        (
            "walk",
            "NAMES = [n[:-4] for _, _, files in os.walk(FOLDER) for n in sorted(files)]",
        ),
    ];
    let mut inputs = Vec::new();
    for (kind, read) in reads {
        let folder = format!("{kind}_{}/deep", dice.roll(1000));
        let inner = folder.clone();
        inputs.push(Input {
            name: format!("folder_{kind}"),
            read: format!("FOLDER = str(HERE / 'inputs' / '{folder}')\n{read}"),
            write: Box::new(move |place, names| {
                let folder = place.dags.join("inputs").join(&inner);
                std::fs::create_dir_all(&folder).expect("a folder");
                for entry in std::fs::read_dir(&folder).expect("a folder").flatten() {
                    std::fs::remove_file(entry.path()).expect("a file to delete");
                }
                for name in names {
                    put(&folder.join(format!("{name}.sql")), "select 1");
                }
            }),
        });
    }
    inputs
}

/// Modules within the DAG folder and outside of it, and what is kept in the database.
fn of_others() -> Vec<Input> {
    let module = |folder: fn(&Place<'_>) -> PathBuf, file: &'static str| -> Write {
        Box::new(move |place, names| put(&folder(place).join(file), &format!("TASKS = {}", quoted(names))))
    };
    let call = |place: &Place<'_>, path: &str, key: &str, body: &Value| {
        let (status, answer) = place.api.call("POST", path, Some(body)).expect("an answer");
        if status == 409 {
            let path = format!("{path}/{key}");
            let (status, answer) = place.api.call("PATCH", &path, Some(body)).expect("an answer");
            assert_eq!(status, 200, "{answer}");
            return;
        }
        assert_eq!(status, 201, "{answer}");
    };
    vec![
        Input {
            name: "module_inside".to_owned(),
            read: "from team.names import TASKS as NAMES".to_owned(),
            write: module(|place| place.dags.clone(), "team/names.py"),
        },
        Input {
            name: "module_outside".to_owned(),
            read: "sys.path.insert(0, str(HERE.parent / 'outside'))\nfrom names_outside import TASKS as NAMES".to_owned(),
            write: module(|place| place.outside.clone(), "names_outside.py"),
        },
        Input {
            name: "module_optional".to_owned(),
            read: "try:\n    from names_later import TASKS as NAMES\nexcept ImportError:\n    NAMES = ['none']".to_owned(),
            write: module(|place| place.dags.clone(), "names_later.py"),
        },
        Input {
            name: "sibling".to_owned(),
            read: "from sibling_of_it import TASKS as NAMES".to_owned(),
            write: Box::new(|place, names| {
                let dag = "with DAG('sibling_itself', schedule=None):\n    Bash(task_id='x', bash_command='true')";
                put(&place.dags.join("sibling_of_it.py"), &format!("{HEAD}TASKS = {}\n{dag}\n", quoted(names)));
            }),
        },
        Input {
            name: "variable".to_owned(),
            read: "NAMES = json.loads(Variable.get('names', default='[\"none\"]'))".to_owned(),
            write: Box::new(move |place, names| {
                let body = json!({"key": "names", "value": quoted(names)});
                call(place, "/api/v2/variables", "names", &body);
            }),
        },
        Input {
            name: "connection".to_owned(),
            read: "try:\n    NAMES = Connection.get('names').schema.split(',')\nexcept Exception:\n    NAMES = ['none']".to_owned(),
            write: Box::new(move |place, names| {
                let body = json!({"connection_id": "names", "conn_type": "http", "schema": names.join(",")});
                call(place, "/api/v2/connections", "names", &body);
            }),
        },
    ]
}

fn tasks_of(api: &Api, dag_id: &str) -> Result<Vec<String>, String> {
    let (status, body) = api
        .call("GET", &format!("/api/v2/dags/{dag_id}/tasks"), None)
        .map_err(|error| error.to_string())?;
    if status != 200 {
        return Err(format!(
            "{body} {:?}",
            api.call("GET", "/api/v2/importErrors", None)
        ));
    }
    let tasks = body["tasks"].as_array().into_iter().flatten();
    let mut names: Vec<String> = tasks
        .filter_map(|task| task["task_id"].as_str())
        .map(str::to_owned)
        .collect();
    names.sort();
    Ok(names)
}

fn follows(api: &Api, input: &Input, names: &[String], bound: Duration) {
    let mut wanted = names.to_vec();
    wanted.sort();
    let begin = Instant::now();
    eventually(&format!("{} follows", input.name), PATIENCE, || {
        match tasks_of(api, &input.name)? {
            found if found == wanted => Ok(()),
            found => Err(format!("{found:?} instead of {wanted:?}")),
        }
    });
    let took = begin.elapsed();
    assert!(took <= bound, "{} took {took:?}", input.name);
}

/// When each DAG was parsed last.
fn parsed(api: &Api) -> BTreeMap<String, String> {
    let dags = api.get("/api/v2/dags?limit=100");
    let facts = |dag: &Value| {
        let text = |key: &str| dag[key].as_str().unwrap_or_default().to_owned();
        (text("dag_id"), text("last_parsed_time"))
    };
    dags["dags"].as_array().into_iter().flatten().map(facts).collect()
}

fn server() -> Option<(Installation, Process, Api)> {
    let installation = Installation::new(&harness::python()?);
    let process = installation.start("updraft", &["standalone"], &[]);
    let api = installation.api();
    Some((installation, process, api))
}

#[test]
fn a_stored_dag_follows_each_input_of_its_file_and_nothing_else_is_parsed() {
    let Some((installation, _process, api)) = server() else {
        return;
    };
    let mut dice = Dice(20_261_130);
    let place = Place {
        dags: installation.path().join("dags"),
        outside: installation.path().join("outside"),
        api: &api,
    };
    let mut inputs = of_files(&mut dice);
    inputs.extend(of_folders(&mut dice));
    inputs.extend(of_others());
    // Half of the inputs come only after the files that ask for them.
    let may_be_absent = |input: &Input| {
        ["optional", "is_file", "fallback", "variable", "connection"]
            .iter()
            .any(|word| input.name.contains(word))
    };
    let mut current: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for input in &inputs {
        let first = if may_be_absent(input) {
            vec!["none".to_owned()]
        } else {
            names(&mut dice)
        };
        if !may_be_absent(input) {
            (input.write)(&place, &first);
        }
        current.insert(input.name.clone(), first);
        let body = format!(
            "with DAG('{}', schedule=None):\n    for name in NAMES:\n        Bash(task_id=name, bash_command='true')\n",
            input.name
        );
        installation.dag(
            &format!("{}.py", input.name),
            &format!("{HEAD}{}\n{body}", input.read),
        );
    }
    for input in &inputs {
        follows(&api, input, &current[&input.name], PATIENCE);
    }
    let mut before = settled(&api);
    for _ in 0..2 {
        for input in &inputs {
            let next = names(&mut dice);
            (input.write)(&place, &next);
            follows(&api, input, &next, BOUND);
            let after = settled(&api);
            let others: Vec<&String> = after
                .iter()
                .filter(|(dag_id, time)| before.get(*dag_id) != Some(time))
                .map(|(dag_id, _)| dag_id)
                .filter(|dag_id| **dag_id != input.name && *dag_id != "sibling_itself")
                .collect();
            assert!(others.is_empty(), "{} made {others:?} be parsed, too", input.name);
            before = after;
        }
    }
}

/// When each DAG was parsed last, once that no longer changes.
fn settled(api: &Api) -> BTreeMap<String, String> {
    let mut before = (parsed(api), Instant::now());
    eventually("parsing comes to rest", PATIENCE, || {
        let now = parsed(api);
        if now != before.0 {
            before = (now, Instant::now());
        }
        if before.1.elapsed() >= Duration::from_millis(400) {
            return Ok(());
        }
        Err(format!("{:?}", before.0))
    });
    before.0
}

/// A file with one DAG of its own name.
fn dag_file(name: &str, before: &str, command: &str) -> String {
    format!(
        "{HEAD}{before}\nwith DAG('{name}', schedule=None):\n    Bash(task_id='t', bash_command={command})\n"
    )
}

/// The files with import errors, and what these say.
fn errors(api: &Api) -> BTreeMap<String, String> {
    let all = api.get("/api/v2/importErrors");
    let facts = |error: &Value| {
        let text = |key: &str| error[key].as_str().unwrap_or_default().to_owned();
        (text("filename"), text("stack_trace"))
    };
    all["import_errors"]
        .as_array()
        .into_iter()
        .flatten()
        .map(facts)
        .collect()
}

#[test]
fn a_touch_parses_again_and_what_only_time_heals_is_tried_again() {
    let Some((installation, _process, api)) = server() else {
        return;
    };
    installation.dag("touched.py", &dag_file("touched", "", "'true'"));
    // Nobody can see that this one loads when some seconds have passed.
    let wait = "import time\nif time.time() < UNTIL: raise RuntimeError('too early')";
    let until = std::time::SystemTime::now() + Duration::from_secs(4);
    let until = until
        .duration_since(std::time::UNIX_EPOCH)
        .expect("a time")
        .as_secs();
    installation.dag(
        "healed.py",
        &dag_file("healed", &wait.replace("UNTIL", &until.to_string()), "'true'"),
    );
    api.wait_for_dag("touched");
    api.wait_for_dag("healed");
    assert_eq!(errors(&api), BTreeMap::new());
    let before = settled(&api);
    let file = std::fs::File::options()
        .append(true)
        .open(installation.path().join("dags/touched.py"))
        .expect("the file");
    file.set_modified(std::time::SystemTime::now()).expect("a touch");
    eventually("the touched file is parsed", BOUND, || {
        if parsed(&api)["touched"] == before["touched"] {
            return Err("it is not".to_owned());
        }
        Ok(())
    });
    let after = settled(&api);
    assert_eq!(after["healed"], before["healed"]);
}

#[test]
fn a_start_parses_what_changed_meanwhile_and_nothing_else() {
    let Some((mut installation, process, api)) = server() else {
        return;
    };
    let dags = installation.path().join("dags");
    put(&dags.join("kept.json"), "[\"t\"]");
    put(&dags.join("changed.json"), "[\"t\"]");
    for name in ["kept", "changed"] {
        let read = format!("NAMES = json.load(open(HERE / '{name}.json'))\nassert NAMES == ['t']");
        installation.dag(&format!("{name}.py"), &dag_file(name, &read, "'true'"));
    }
    installation.dag(
        "environment.py",
        &dag_file("environment", "", "'echo ' + os.environ.get('TEAM', 'none')"),
    );
    for name in ["kept", "changed", "environment"] {
        api.wait_for_dag(name);
    }
    let before = settled(&api);
    drop(process);
    put(&dags.join("changed.json"), "[ \"t\"]");
    installation.set("TEAM", "blue");
    let _process = installation.start("updraft", &["standalone"], &[]);
    let api = installation.api();
    for name in ["changed", "environment"] {
        eventually(&format!("{name} is parsed"), PATIENCE, || {
            if parsed(&api)[name] == before[name] {
                return Err("it is not".to_owned());
            }
            Ok(())
        });
    }
    assert_eq!(settled(&api)["kept"], before["kept"]);
}

#[test]
fn a_set_interval_is_the_pace_of_files_that_did_not_change() {
    let Some(python) = harness::python() else {
        return;
    };
    let mut installation = Installation::new(&python);
    installation.set("AIRFLOW__DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL", "2");
    let clock = "import time\nNAMES = [f't{int(time.time())}']";
    let body = "with DAG('clock', schedule=None):\n    Bash(task_id=NAMES[0], bash_command='true')";
    installation.dag("clock.py", &format!("{HEAD}{clock}\n{body}\n"));
    let _process = installation.start("updraft", &["standalone"], &[]);
    let api = installation.api();
    api.wait_for_dag("clock");
    for _ in 0..3 {
        let (before, begin) = (tasks_of(&api, "clock"), Instant::now());
        eventually("the clock goes on", Duration::from_secs(10), || {
            let now = tasks_of(&api, "clock");
            if now == before {
                Err(format!("{now:?}"))
            } else {
                Ok(())
            }
        });
        // It was parsed once before the pace is waited for.
        assert!(begin.elapsed() < Duration::from_secs(8));
    }
}
