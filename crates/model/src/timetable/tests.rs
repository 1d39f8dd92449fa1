use super::*;
use serde_json::{Value, json};

fn at(text: &str) -> Timestamp {
    chrono::DateTime::parse_from_rfc3339(text).unwrap().to_utc()
}

fn read(class: &str, body: Value) -> Timetable {
    Timetable::from_serialized(&json!({"__type": format!("airflow.timetables.{class}"), "__var": body}))
        .unwrap()
}

fn cron_trigger(expression: &str, zone: &str) -> Timetable {
    read(
        "trigger.CronTriggerTimetable",
        json!({"expression": expression, "timezone": zone, "interval": 0.0, "run_immediately": false}),
    )
}

fn restriction(earliest: &str, catchup: bool) -> Restriction {
    Restriction {
        earliest: Some(at(earliest)),
        latest: None,
        catchup,
    }
}

/// Expected instants were computed by Airflow 3.3.2.
#[test]
fn cron_walks_over_clock_changes_as_airflow_does() {
    for (expression, zone, from, expected) in [
        (
            "30 2 * * *",
            "Europe/Zurich",
            "2024-03-30T12:00:00Z",
            "2024-03-31T01:30:00Z",
        ),
        (
            "30 2 * * *",
            "Europe/Zurich",
            "2024-03-31T01:30:00Z",
            "2024-04-01T00:30:00Z",
        ),
        (
            "30 2 * * *",
            "Europe/Zurich",
            "2024-10-26T12:00:00Z",
            "2024-10-27T01:30:00Z",
        ),
        (
            "30 2 * * *",
            "Europe/Zurich",
            "2024-10-27T00:30:00Z",
            "2024-10-28T01:30:00Z",
        ),
        (
            "30 * * * *",
            "Europe/Zurich",
            "2024-03-31T00:30:00Z",
            "2024-03-31T01:30:00Z",
        ),
        (
            "30 * * * *",
            "Europe/Zurich",
            "2024-10-27T00:30:00Z",
            "2024-10-27T01:30:00Z",
        ),
        (
            "0 */2 * * *",
            "Europe/Zurich",
            "2024-03-31T00:00:00Z",
            "2024-03-31T01:00:00Z",
        ),
        (
            "0 */2 * * *",
            "Europe/Zurich",
            "2024-10-26T22:00:00Z",
            "2024-10-27T01:00:00Z",
        ),
        (
            "0 */2 * * *",
            "Europe/Zurich",
            "2024-10-27T00:00:00Z",
            "2024-10-27T03:00:00Z",
        ),
        (
            "0 0-23 * * *",
            "Europe/Zurich",
            "2024-10-27T00:00:00Z",
            "2024-10-27T01:00:00Z",
        ),
        (
            "0 0 * * *",
            "America/New_York",
            "2024-03-09T12:00:00Z",
            "2024-03-10T05:00:00Z",
        ),
        (
            "0 0 * * *",
            "America/New_York",
            "2024-11-03T12:00:00Z",
            "2024-11-04T05:00:00Z",
        ),
    ] {
        let cron = CronExpression::parse(expression).unwrap();
        let clock = Clock {
            cron: &cron,
            zone: Zone::Named(zone.parse().unwrap()),
        };
        assert_eq!(
            clock.after(at(from)).unwrap(),
            at(expected),
            "{expression} {zone} after {from}"
        );
    }
}

#[test]
fn without_catchup_a_cron_trigger_runs_for_the_latest_time_only() {
    let daily = cron_trigger("0 15 * * *", "Asia/Seoul");
    let limits = restriction("2025-02-28T15:00:00Z", false);
    let now = at("2025-06-10T12:00:00Z");
    let first = daily.next_run(None, &limits, now).unwrap().unwrap();
    assert_eq!(first.run_after, at("2025-06-10T06:00:00Z"));
    assert_eq!(first.interval, DataInterval::exact(first.run_after));
    let second = daily
        .next_run(Some(first.interval), &limits, now)
        .unwrap()
        .unwrap();
    assert_eq!(second.run_after, at("2025-06-11T06:00:00Z"));
}

#[test]
fn with_catchup_no_time_is_left_out() {
    let daily = cron_trigger("@daily", "UTC");
    let limits = restriction("2025-01-01T00:00:00Z", true);
    let now = at("2025-01-20T12:00:00Z");
    let mut last = None;
    let mut dates = Vec::new();
    while let Some(run) = daily
        .next_run(last, &limits, now)
        .unwrap()
        .filter(|run| run.run_after <= now)
    {
        dates.push(run.logical_date);
        last = Some(run.interval);
    }
    assert_eq!(dates.len(), 20);
    assert_eq!(
        (dates[0], dates[19]),
        (at("2025-01-01T00:00:00Z"), at("2025-01-20T00:00:00Z"))
    );
}

#[test]
fn data_intervals_end_when_their_run_starts() {
    let daily = read(
        "interval.CronDataIntervalTimetable",
        json!({"expression": "0 0 * * *", "timezone": "UTC"}),
    );
    let now = at("2024-05-05T01:02:03Z");
    let run = daily
        .next_run(None, &restriction("2024-01-01T00:00:00Z", false), now)
        .unwrap()
        .unwrap();
    assert_eq!(
        run.interval,
        DataInterval {
            start: at("2024-05-04T00:00:00Z"),
            end: at("2024-05-05T00:00:00Z")
        }
    );
    assert_eq!(run.logical_date, run.interval.start);
    assert_eq!(daily.manual_interval(now).unwrap(), run.interval);
    let first = daily
        .next_run(None, &restriction("2024-01-01T12:00:00Z", true), now)
        .unwrap()
        .unwrap();
    assert_eq!(first.logical_date, at("2024-01-02T00:00:00Z"));
}

#[test]
fn deltas_count_from_the_run_before() {
    let hourly = read(
        "trigger.DeltaTriggerTimetable",
        json!({"delta": 3600.0, "interval": 0.0}),
    );
    let now = at("2024-05-05T01:02:03Z");
    let limits = restriction("2024-05-05T00:00:00Z", true);
    let first = hourly.next_run(None, &limits, now).unwrap().unwrap();
    assert_eq!(first.run_after, at("2024-05-05T00:00:00Z"));
    let second = hourly
        .next_run(Some(first.interval), &limits, now)
        .unwrap()
        .unwrap();
    assert_eq!(second.run_after, at("2024-05-05T01:00:00Z"));
    let monthly = read(
        "interval.DeltaDataIntervalTimetable",
        json!({"delta": {"months": 1}}),
    );
    let run = monthly
        .next_run(None, &restriction("2024-01-31T00:00:00Z", true), now)
        .unwrap()
        .unwrap();
    assert_eq!(run.interval.end, at("2024-02-29T00:00:00Z"));
}

#[test]
fn once_runs_once_and_continuous_follows_itself() {
    let now = at("2024-05-05T00:00:00Z");
    let limits = restriction("2024-01-01T00:00:00Z", false);
    let once = read("simple.OnceTimetable", json!({}));
    let run = once.next_run(None, &limits, now).unwrap().unwrap();
    assert_eq!(run.logical_date, at("2024-01-01T00:00:00Z"));
    assert_eq!(once.next_run(Some(run.interval), &limits, now).unwrap(), None);
    let continuous = read("simple.ContinuousTimetable", json!({}));
    let first = continuous.next_run(None, &limits, now).unwrap().unwrap();
    let second = continuous
        .next_run(Some(first.interval), &limits, now + Duration::minutes(1))
        .unwrap()
        .unwrap();
    assert_eq!(
        second.interval,
        DataInterval {
            start: now,
            end: now + Duration::minutes(1)
        }
    );
    assert_eq!(continuous.active_runs_limit(), Some(1));
}

#[test]
fn nothing_is_wanted_after_the_end_date() {
    let limits = Restriction {
        earliest: Some(at("2024-01-01T00:00:00Z")),
        latest: Some(at("2024-01-02T00:00:00Z")),
        catchup: true,
    };
    let daily = cron_trigger("@daily", "UTC");
    let last = Some(DataInterval::exact(at("2024-01-02T00:00:00Z")));
    assert_eq!(
        daily.next_run(last, &limits, at("2024-06-01T00:00:00Z")).unwrap(),
        None
    );
}

#[test]
fn a_class_of_the_users_makes_no_runs_and_is_no_error() {
    let table =
        Timetable::from_serialized(&json!({"__type": "plugins.workday.AfterWorkday", "__var": {}})).unwrap();
    assert!(matches!(&table, Timetable::Foreign { class } if class == "plugins.workday.AfterWorkday"));
    assert!(!table.can_be_scheduled());
}

/// Expected instants were computed by Airflow 3.3.2.
#[test]
fn an_end_date_bounds_each_of_several_expressions_before_one_is_chosen() {
    let several = read(
        "trigger.MultipleCronTriggerTimetable",
        json!({"expressions": ["0 0 * * *", "30 2 * * *"], "timezone": "Europe/Lisbon", "interval": 0.0, "run_immediately": false}),
    );
    let bounds = Restriction {
        earliest: Some(at("2006-09-01T00:00:00Z")),
        latest: Some(at("2006-09-05T23:00:00Z")),
        catchup: false,
    };
    let next = several
        .next_run(None, &bounds, at("2006-09-06T13:32:31Z"))
        .unwrap();
    assert_eq!(next.map(|run| run.run_after), Some(at("2006-09-05T23:00:00Z")));
}

/// Airflow 3.3.2 raises "did not advance" here.
#[test]
fn a_schedule_goes_on_over_a_jump_that_a_step_back_does_not_undo() {
    let hourly = read(
        "interval.CronDataIntervalTimetable",
        json!({"expression": "0 * * * *", "timezone": "Asia/Kathmandu"}),
    );
    let last = DataInterval {
        start: at("1985-12-31T18:30:00Z"),
        end: at("1985-12-31T19:15:00Z"),
    };
    let bounds = restriction("1985-12-31T17:12:23Z", true);
    let next = hourly
        .next_run(Some(last), &bounds, at("1987-02-04T17:12:23Z"))
        .unwrap();
    assert_eq!(next.map(|run| run.interval.start), Some(last.end));
}
