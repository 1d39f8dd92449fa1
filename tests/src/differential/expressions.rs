//! Random templates: expressions that make sense in Jinja, and some that do not.

use crate::lots::Lots;

const NAMES: [&str; 26] = [
    "ds",
    "ts",
    "ds_nodash",
    "ts_nodash",
    "ts_nodash_with_tz",
    "run_id",
    "ti.task_id",
    "ti.try_number",
    "ti['run_id']",
    "ti.map_index",
    "task.task_id",
    "logical_date",
    "data_interval_start",
    "data_interval_end.year",
    "params.s",
    "params['u']",
    "params.n",
    "params.f",
    "params.l",
    "params.d",
    "dag_run.conf.c",
    "dag_run.conf['l']",
    "dag_run.run_type",
    "partition_key",
    "nope",
    "dag_run.conf.get('q', 'w')",
];
const LITERALS: [&str; 24] = [
    "0",
    "1",
    "-3",
    "7",
    "12",
    "255",
    "1.5",
    "0.1",
    "-2.25",
    "1e16",
    "1e-7",
    "100000000000000000000",
    "true",
    "false",
    "none",
    "True",
    "None",
    "'a'",
    "\"b c\"",
    "''",
    "'Grüße'",
    "'a\\nb'",
    "'\\x41'",
    "'{{'",
];
const NUMBERS: [&str; 12] = [
    "params.n",
    "params.f",
    "ti.try_number",
    "3",
    "-7",
    "2.5",
    "0",
    "1e16",
    "true",
    "loop_n",
    "data_interval_end.month",
    "params.z",
];
const TEXTS: [&str; 9] = [
    "ds",
    "params.s",
    "params.u",
    "'a-b-a'",
    "' x y '",
    "run_id",
    "params.e",
    "'straße'",
    "'x\ty'",
];
const FILTERS: [&str; 34] = [
    "upper",
    "lower",
    "trim",
    "trim('-a')",
    "replace('a', 'b')",
    "replace('a', 'b', 1)",
    "replace('', '.')",
    "length",
    "count",
    "string",
    "first",
    "last",
    "list",
    "join",
    "join('-')",
    "join(d='+')",
    "default('x')",
    "default('x', true)",
    "d",
    "int",
    "int(5)",
    "abs",
    "ds",
    "ts",
    "ts_nodash",
    "title",
    "capitalize",
    "sort",
    "reverse",
    "unique",
    "tojson",
    "round",
    "float",
    "replace('b')",
];
const METHODS: [&str; 17] = [
    ".upper()",
    ".lower()",
    ".strip()",
    ".strip('a')",
    ".rstrip()",
    ".replace('a', 'x')",
    ".replace('a', 'x', 1)",
    ".split('-')",
    ".split('-', 1)",
    ".split()",
    ".startswith('a')",
    ".endswith('1')",
    "[0]",
    "[-1]",
    "[1:3]",
    "[::-1]",
    "[99]",
];
const OF_DATES: [&str; 24] = [
    ".in_timezone('Asia/Seoul')",
    ".in_tz('America/New_York').to_date_string()",
    ".to_date_string()",
    ".to_time_string()",
    ".to_datetime_string()",
    ".isoformat()",
    ".strftime('%Y/%m/%d %H:%M:%S')",
    ".strftime('%j %U %W %w %V %G %y %I %p %a %A %b %B')",
    ".strftime('%f %z %%')",
    ".strftime('%-d')",
    ".strftime('%c')",
    ".timestamp()",
    ".int_timestamp",
    ".add(days=1)",
    ".subtract(weeks=2)",
    ".add(hours=30, minutes=-5)",
    ".add(months=1)",
    ".year",
    ".quarter",
    ".day_of_year",
    ".timezone_name",
    ".day_of_week",
    ".add(days=1) | ds",
    ".start_of('month')",
];
const TESTS: [&str; 15] = [
    "defined",
    "not defined",
    "none",
    "not none",
    "string",
    "number",
    "boolean",
    "odd",
    "even",
    "integer",
    "float",
    "divisibleby(3)",
    "mapping",
    "sequence",
    "undefined",
];
const TEXT: [&str; 16] = [
    "echo ",
    "\n",
    "\r\n",
    "\r",
    " ",
    "  ",
    "a",
    "$HOME ",
    "\\n",
    "'",
    "\"",
    "Grüße 漢",
    "{",
    "}",
    "# ",
    "\t",
];

fn number(lots: &mut Lots, depth: u32) -> String {
    if depth == 0 {
        return (*lots.one(&NUMBERS)).replace("loop_n", "1");
    }
    let (left, right) = (number(lots, depth - 1), number(lots, depth - 1));
    match lots.below(5) {
        0 => (*lots.one(&NUMBERS)).replace("loop_n", "2"),
        1 => format!("({left} {} {right})", lots.one(&["+", "-", "*"])),
        2 => format!(
            "{left} {} {right}",
            lots.one(&["+", "-", "*", "//", "%", "/", "**"])
        ),
        3 => format!("-{left}"),
        _ => format!("{left} | abs"),
    }
}

fn text(lots: &mut Lots, depth: u32) -> String {
    let base = (*lots.one(&TEXTS)).to_owned();
    match (depth, lots.below(5)) {
        (0, _) | (_, 0) => base,
        (_, 1) => format!("{base}{}", lots.one(&METHODS)),
        (_, 2) => format!("{} | {}", text(lots, depth - 1), lots.one(&FILTERS)),
        (_, 3) => format!("{base} ~ {}", expression(lots, depth - 1)),
        (_, _) => format!("{base} * {}", lots.below(4)),
    }
}

/// A random expression.
pub(super) fn expression(lots: &mut Lots, depth: u32) -> String {
    if depth == 0 {
        return match lots.below(3) {
            0 => (*lots.one(&LITERALS)).to_owned(),
            _ => (*lots.one(&NAMES)).to_owned(),
        };
    }
    let mut inner = || expression(lots, depth - 1);
    let (left, right) = (inner(), inner());
    match lots.below(16) {
        0 => left,
        1 | 2 => number(lots, depth),
        3 | 4 => text(lots, depth),
        5 => format!(
            "{left} {} {right}",
            lots.one(&["==", "!=", "<", "<=", ">", ">=", "in", "not in"])
        ),
        6 => format!("{left} {} {right}", lots.one(&["and", "or"])),
        7 => format!("not {left}"),
        8 => format!("{left} if {right} else {}", expression(lots, 0)),
        9 => format!("({left}) | {}", lots.one(&FILTERS)),
        10 => format!("({left}) is {}", lots.one(&TESTS)),
        11 => format!("logical_date{}", lots.one(&OF_DATES)),
        12 => format!("[{left}, {right}]"),
        13 => format!("{{'k': {left}, \"m\": {right}}}"),
        14 => format!(
            "macros.ds_add(ds, {})",
            lots.one(&["0", "1", "-40", "400", "'1'"])
        ),
        _ => format!(
            "params.{}",
            lots.one(&[
                "nope | default('d')",
                "l[1]",
                "d.k",
                "d['n'][0]",
                "items",
                "d.get('k')",
                "l | join(',')"
            ])
        ),
    }
}

fn statement(lots: &mut Lots) -> String {
    let (condition, value) = (expression(lots, 1), expression(lots, 1));
    let (open, close) = lots.one(&[("{%", "%}"), ("{%-", "%}"), ("{%", "-%}"), ("{%-", "-%}")]);
    match lots.below(8) {
        0 => format!("{open} if {condition} {close}yes {open} else {close} no{open} endif {close}"),
        1 => format!("{open} set v = {value} {close}{{{{ v }}}}{{{{ v }}}}"),
        2 => format!(
            "{open} for i in range({}) {close}{{{{ i }}}}{{{{ loop.index }}}} {open} endfor {close}",
            lots.below(4)
        ),
        3 => format!(
            "{open} for i in params.l {close}[{{{{ i }}}}{{{{ loop.last }}}}]{open} else {close}none{open} endfor {close}"
        ),
        4 => format!(
            "{open} for k, v in params.d.items() {close}{{{{ k }}}}={{{{ v }}}}{{{{ loop.revindex }}}};{open} endfor {close}"
        ),
        5 => format!(
            "{{# a comment #}}{{% raw %}}{{{{ raw }}}}{{% endraw %}}{open} if true {close}{{{{ {value} }}}}{open} endif {close}"
        ),
        6 => format!(
            "{open} set v = 1 {close}{open} for i in [1, 2] {close}{{{{ v }}}}{open} set v = i {close}{open} endfor {close}{{{{ v }}}}"
        ),
        _ => format!(
            "{open} if {condition} {close}{{{{ {value} }}}}{open} elif {value} {close}{{{{ ds }}}}{open} endif {close}"
        ),
    }
}

/// A random template.
pub(super) fn template(lots: &mut Lots) -> String {
    let mut out = String::new();
    for _ in 0..=lots.below(4) {
        out.push_str(lots.one::<&str>(&TEXT));
        let depth = 1 + lots.below(2) as u32;
        match lots.below(4) {
            0 => out.push_str(&statement(lots)),
            1 => out.push_str(&format!("{{{{- {} -}}}}", expression(lots, depth))),
            _ => out.push_str(&format!("{{{{ {} }}}}", expression(lots, depth))),
        }
    }
    out.push_str(lots.one::<&str>(&TEXT));
    out
}
