use super::*;
use serde_json::json;

fn mapper(name: &str, body: Value) -> PartitionMapper {
    let class = format!("airflow.partition_mappers.{name}");
    PartitionMapper::from_serialized(&json!({"__type": class, "__var": body})).expect("a mapper")
}

fn serialized(name: &str, body: Value) -> Value {
    json!({"__type": format!("airflow.partition_mappers.{name}"), "__var": body})
}

fn start_of(period: &str, zone: &str, output: &str) -> Value {
    let body = json!({"timezone": zone, "input_format": "%Y-%m-%dT%H:%M:%S", "output_format": output});
    serialized(&format!("temporal.StartOf{period}Mapper"), body)
}

fn down(mapper: &PartitionMapper, key: &str) -> Vec<String> {
    mapper.to_downstream(key).expect("keys")
}

fn read(value: &Value) -> PartitionMapper {
    PartitionMapper::from_serialized(value).expect("a mapper")
}

// The expected values are what Airflow 3.3.2 answers.
#[test]
fn keys_become_those_of_their_period() {
    let key = "2024-03-13T10:42:15";
    for (period, output, expected) in [
        ("Hour", "%Y-%m-%dT%H", "2024-03-13T10"),
        ("Day", "%Y-%m-%d", "2024-03-13"),
        ("Week", "%Y-%m-%d (W%V)", "2024-03-11 (W11)"),
        ("Month", "%Y-%m", "2024-03"),
        ("Quarter", "%Y-Q{quarter}", "2024-Q1"),
        ("Year", "%Y", "2024"),
    ] {
        let mapper = read(&start_of(period, "UTC", output));
        assert_eq!(down(&mapper, key), [expected]);
        assert!(
            mapper.to_partition_date(expected).expect("a date").is_some(),
            "{expected}"
        );
    }
    let day = read(&start_of("Day", "Asia/Taipei", "%Y-%m-%d"));
    let date = day.to_partition_date("2026-01-06").expect("a date").expect("one");
    assert_eq!(date.to_rfc3339(), "2026-01-05T16:00:00+00:00");
    assert!(day.to_downstream("yesterday").is_err());
}

#[test]
fn a_week_waits_for_its_days_and_a_minimum_for_as_many() {
    let rollup = |policy: Value| {
        let body = json!({
            "upstream_mapper": start_of("Week", "UTC", "%Y-%m-%d (W%V)"),
            "window": serialized("window.WeekWindow", json!({"direction": "forward"})), "wait_policy": policy,
        });
        mapper("base.RollupMapper", body)
    };
    let all = rollup(serialized("wait_policy.WaitForAll", json!({})));
    let key = "2024-03-11 (W11)";
    let days = all.to_upstream(key).expect("days");
    assert_eq!(days.len(), 7);
    assert!(days.contains("2024-03-17T00:00:00"), "{days:?}");
    let mut come: BTreeSet<String> = days.iter().take(6).cloned().collect();
    assert!(!all.is_satisfied(key, &come).expect("a key"));
    let minimum = |n: i64| rollup(serialized("wait_policy.MinimumCount", json!({"n": n})));
    assert!(minimum(6).is_satisfied(key, &come).expect("a key"));
    assert!(minimum(-1).is_satisfied(key, &come).expect("a key"));
    assert!(!minimum(7).is_satisfied(key, &come).expect("a key"));
    come.extend(days);
    assert!(all.is_satisfied(key, &come).expect("a key"));
}

#[test]
fn windows_go_forward_and_backward() {
    let fan = |window: &str, direction: &str, upstream: Value, downstream: Value| {
        let body = json!({
            "upstream_mapper": upstream, "downstream_mapper": downstream,
            "window": serialized(&format!("window.{window}"), json!({"direction": direction})),
        });
        mapper("temporal.FanOutMapper", body)
    };
    let day = || start_of("Day", "UTC", "%Y-%m-%d");
    let month = || start_of("Month", "UTC", "%Y-%m");
    let days = down(
        &fan("MonthWindow", "backward", month(), day()),
        "2024-03-10T00:00:00",
    );
    assert_eq!(
        (days.len(), days[0].as_str(), days[28].as_str()),
        (29, "2024-02-02", "2024-03-01")
    );
    let quarter = start_of("Quarter", "UTC", "%Y-Q{quarter}");
    let months = down(
        &fan("QuarterWindow", "forward", quarter, month()),
        "2024-05-10T00:00:00",
    );
    assert_eq!(months, ["2024-04", "2024-05", "2024-06"]);
    let hours = down(
        &fan(
            "DayWindow",
            "forward",
            day(),
            start_of("Hour", "UTC", "%Y-%m-%dT%H"),
        ),
        "2024-05-10T07:00:00",
    );
    assert_eq!((hours.len(), hours[23].as_str()), (24, "2024-05-10T23"));
    assert!(
        fan("YearWindow", "forward", day(), month())
            .to_downstream("2024-05-10T07:00:00")
            .is_err()
    );
}

#[test]
fn mappers_are_put_together() {
    let product = mapper(
        "product.ProductMapper",
        json!({"delimiter": "|", "mappers": [
            serialized("allowed_key.AllowedKeyMapper", json!({"allowed_keys": ["us", "eu"]})),
            start_of("Day", "UTC", "%Y-%m-%d"),
        ]}),
    );
    assert_eq!(down(&product, "us|2024-03-13T10:42:15"), ["us|2024-03-13"]);
    assert!(
        product
            .to_partition_date("us|2024-03-13")
            .expect("a date")
            .is_some()
    );
    assert!(product.to_downstream("fr|2024-03-13T10:42:15").is_err());
    assert!(product.to_downstream("us").is_err());
    let chain = mapper(
        "chain.ChainMapper",
        json!({"mappers": [
            start_of("Day", "UTC", "%Y-%m-%dT%H:%M:%S"), start_of("Month", "UTC", "%Y-%m"),
        ]}),
    );
    assert_eq!(down(&chain, "2024-03-13T10:42:15"), ["2024-03"]);
    let segments = mapper(
        "base.RollupMapper",
        json!({
            "upstream_mapper": serialized("fixed_key.FixedKeyMapper", json!({"downstream_key": "all"})),
            "window": serialized("window.SegmentWindow", json!({"segments": ["a", "b"]})),
            "wait_policy": serialized("wait_policy.WaitForAll", json!({})),
        }),
    );
    assert_eq!(down(&segments, "a"), ["all"]);
    assert!(
        !segments
            .is_satisfied("all", &BTreeSet::from(["a".to_owned()]))
            .expect("a key")
    );
    assert!(
        segments
            .is_satisfied("all", &["a", "b"].map(str::to_owned).into())
            .expect("a key")
    );
    let own = PartitionMapper::from_serialized(&json!({"__type": "mine.Mapper", "__var": {}})).expect("one");
    assert!(matches!(own.to_downstream("a"), Err(PartitionError::Foreign(_))));
}

#[test]
fn keys_name_the_offset_of_their_zone_and_no_year_beyond_pythons() {
    use crate::timetable::Timetable;
    let timetable = json!({"__type": "airflow.timetables.trigger.CronPartitionTimetable", "__var": {
        "expression": "0 0 * * *", "timezone": "Asia/Taipei", "run_immediately": false, "run_offset": null,
        "key_format": "%Y-%m-%dT%H:%M:%S%z",
    }});
    let timetable = Timetable::from_serialized(&timetable).expect("a timetable");
    let midnight = chrono::DateTime::parse_from_rfc3339("2026-01-01T16:00:00Z")
        .expect("an instant")
        .to_utc();
    let partition = timetable
        .partition_of(midnight)
        .expect("a partition")
        .expect("one");
    assert_eq!(partition.key, "2026-01-02T00:00:00+0800");
    assert_eq!(timetable.partition_date(&partition.key), Ok(Some(midnight)));
    let week = read(&start_of("Week", "UTC", "%Y-%m-%d"));
    assert!(week.to_downstream("-262143-01-01T00:00:00").is_err());
    assert!(week.to_downstream("+262142-12-31T00:00:00").is_err());
}
