//! Commands: what they print, where they run, how they end.

use super::cases::usual_params;
use super::expressions::template;
use crate::lots::Lots;
use serde_json::{Map, Value, json};

/// Outputs: line ends, encodings, lengths, control bytes.
pub(super) fn of_output(lots: &mut Lots) -> Value {
    const PIECES: [&str; 22] = [
        "\\n",
        "\\n\\n",
        "\\r\\n",
        "\\r",
        " ",
        "\\t",
        "a",
        "b c",
        "Grüße",
        "漢字",
        "😀",
        "\\377",
        "\\303",
        "\\342\\202",
        "\\355\\240\\200",
        "\\034",
        "\\302\\205",
        "\\302\\240",
        "\\033[31mred\\033[0m",
        "\\001",
        "%%",
        "::group::x",
    ];
    let mut commands = Vec::new();
    for _ in 0..=lots.below(4) {
        let length = lots.one(&[10_usize, 65_534, 65_535, 65_536, 65_537, 131_072, 200_000]);
        commands.push(match lots.below(8) {
            0 => format!("head -c {length} /dev/zero | tr '\\0' x"),
            1 => format!("yes ü | head -n {} | tr -d '\\n'", length / 2),
            2 => "echo err >&2".to_owned(),
            3 => {
                let bytes: String = (0..=lots.below(12))
                    .map(|_| format!("\\\\{:03o}", lots.below(256)))
                    .collect();
                format!("printf '{bytes}'")
            }
            _ => {
                let text: String = (0..=lots.below(6)).map(|_| *lots.one(&PIECES)).collect();
                format!("printf '{text}'")
            }
        });
    }
    json!({"bash_command": commands.join("; "), "do_xcom_push": lots.below(8) > 0})
}

/// Variables, folders, and what a command sees of them.
pub(super) fn of_environment(lots: &mut Lots) -> Value {
    let mut env = Map::new();
    for name in [
        "A",
        "B_1",
        "PATH",
        "LC_ALL",
        "AIRFLOW_CTX_DAG_ID",
        "api_key",
        "X.Y",
    ] {
        if lots.below(3) == 0 {
            let value = match lots.below(3) {
                0 => template(lots),
                _ => (*lots.one(&["", "x", "a b", "{{ ds }}", "1=2", "Grüße\n", "/usr/bin:/bin"])).to_owned(),
            };
            env.insert(name.to_owned(), value.into());
        }
    }
    let append = lots.below(2) == 0;
    let show = if append {
        "echo \"$A|$B_1|$AIRFLOW_CTX_DAG_ID|$AIRFLOW_CTX_TRY_NUMBER|$api_key\""
    } else {
        "export -p | grep -v -e OLDPWD -e PWD -e SHLVL -e UPDRAFT"
    };
    let mut body = json!({
        "bash_command": format!("{show}; pwd | sed s/airflowtmp.*/TMP/"), "env": env, "append_env": append,
        "params": usual_params(), "conf": {"c": "blue", "l": []},
        "owner": lots.one(&["airflow", "me"]),
    });
    if lots.below(3) == 0 {
        body["cwd"] = (*lots.one(&[
            "/",
            "/tmp",
            "/nonexistent",
            "/etc/hosts",
            "{{ params.s }}",
            "",
            "tmp",
        ]))
        .into();
    }
    body
}

/// Ways in which commands end.
pub(super) fn of_exit(lots: &mut Lots) -> Value {
    let codes = [
        json!(99),
        json!(null),
        json!(0),
        json!([]),
        json!([0]),
        json!([1, 2]),
        json!([-15, 143]),
        json!(["1"]),
        json!([1.0]),
        json!([true]),
        json!({"kind": "set", "items": [3, 99]}),
        json!({"kind": "tuple", "items": [99, 1]}),
        json!({"kind": "range", "items": [1, 4]}),
    ];
    let ends = [
        "exit 0",
        "exit 1",
        "exit 2",
        "exit 3",
        "exit 99",
        "exit 127",
        "exit 143",
        "exit 255",
        "exit 256",
        "false",
        "kill -TERM $$",
        "kill -KILL $$",
        "kill -HUP $$",
        "nosuchcommand",
        "if",
        "false | true",
        "set -e; false; echo on",
        "exec 1>&- 2>&-; exit 4",
        "trap 'echo bye; exit 7' TERM; kill -TERM $$",
        "trap '' TERM; kill -TERM $$; echo on",
        "(sleep 0.05; echo late) &",
        "exec bash -c 'kill -KILL $$'",
        // What bash says of it names a process.
        "{ bash -c 'kill -SEGV $$'; } 2>/dev/null; exit $?",
        "ulimit -f 0; echo x > big; exit $?",
        "cd /nonexistent || exit 3",
        "echo 'unclosed",
        "exit nope",
        "return 5",
    ];
    let mut command = format!("echo out; {}", lots.one(&ends));
    if lots.below(3) == 0 {
        // Not those that end the session, nor those that stop it.
        let signal = lots.one(&[
            1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 24, 25, 26, 27, 29, 30, 31, 34, 64,
        ]);
        command = format!("ulimit -c 0; echo out; kill -{signal} $$; echo on");
    }
    let mut body = json!({"bash_command": command});
    if lots.below(2) == 0 {
        body["skip_on_exit_code"] = lots.one(&codes).clone();
    }
    body
}
