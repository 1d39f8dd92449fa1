//! Lists that are paged by the row that came last.

use super::world::worlds;
use chrono::Utc;
use model::DagRunKey;
use model::dag_run::DagRunState;
use std::collections::BTreeSet;
use std::time::{Duration, Instant};
use store::repo::{
    Condition, DURATION, INTERVAL_END, INTERVAL_START, LOGICAL_DATE, Listing, Order, Paged, RUN_AFTER,
};
use store::sql::Value;
use store::{Store, StoreError};

fn by(column: &'static str, descending: bool) -> Vec<Order> {
    vec![
        Order { column, descending },
        Order {
            column: "id",
            descending,
        },
    ]
}

/// All runs, page by page; each page begins after the last row of the one before.
async fn walk(store: &Store, order: &[Order]) -> Vec<DagRunKey> {
    let mut seen = Vec::new();
    let mut after = None;
    loop {
        let listing = Listing {
            order: order.to_vec(),
            after: after.take(),
            limit: 2,
            ..Listing::default()
        };
        let mut db = store.reader().await.unwrap();
        let (runs, total) = db.runs(&listing).await.unwrap();
        assert_eq!(total, 7, "the count does not depend on the page");
        let Some(last) = runs.last() else { return seen };
        after = db.place_of(Paged::DagRuns, order, last.key.into()).await.unwrap();
        seen.extend(runs.iter().map(|run| run.key));
    }
}

#[tokio::test]
async fn pages_that_follow_each_other_hold_every_row_once_whatever_is_null() {
    for world in worlds(1).await {
        let mut all = BTreeSet::new();
        for n in 0..7 {
            let key = world.run(&format!("r{n}")).await.unwrap();
            all.insert(key);
            if n % 2 == 0 {
                store::transact!(world.store, "mark", |tx| tx
                    .mark_run(key, DagRunState::Success, Utc::now())
                    .await)
                .unwrap();
            }
        }
        for column in ["end_date", "end_date - start_date", "state", "conf", "run_after"] {
            for descending in [false, true] {
                let order = by(column, descending);
                let seen = walk(&world.store, &order).await;
                assert_eq!(seen.len(), 7, "{column} {descending}");
                assert_eq!(seen.iter().copied().collect::<BTreeSet<_>>(), all);
                let listing = Listing {
                    order,
                    limit: 100,
                    ..Listing::default()
                };
                let (whole, _) = world.store.reader().await.unwrap().runs(&listing).await.unwrap();
                let whole: Vec<DagRunKey> = whole.iter().map(|run| run.key).collect();
                assert_eq!(seen, whole, "{column} {descending}: the order of the whole list");
            }
        }
    }
}

#[tokio::test]
async fn task_instances_are_found_by_what_their_run_is_like() {
    for world in worlds(3).await {
        world.run("r").await.unwrap();
        for (since, expected) in [(-1, 3), (1, 0)] {
            let bound = Utc::now() + chrono::Duration::hours(since);
            let condition = Condition::OfRun(Box::new(Condition::AtLeast("run_after", bound.into())));
            let open = Condition::NullOr("end_date", Box::new(Condition::Is("end_date", Value::Integer(0))));
            let listing = Listing {
                conditions: vec![condition, open],
                limit: 100,
                ..Listing::default()
            };
            let mut db = world.store.reader().await.unwrap();
            assert_eq!(db.task_instances(&listing).await.unwrap().1, expected);
        }
    }
}

/// A store of 320 runs with 20 task instances each, on each database; the rest keeps it.
async fn filled() -> Vec<(Store, tempfile::TempDir)> {
    let mut stores = Vec::new();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("db");
    let store = Store::open_sqlite(&path).await.unwrap();
    store.migrate().await.unwrap();
    harness::lists::fill(&format!("sqlite:///{}", path.display()), 320, 20).unwrap();
    stores.push((store, folder));
    if let Some(url) = harness::mariadb_database() {
        let store = Store::open_mariadb(&url, 4).await.unwrap();
        store.migrate().await.unwrap();
        harness::lists::fill(&url, 320, 20).unwrap();
        stores.push((store, tempfile::tempdir().unwrap()));
    }
    stores
}

/// The ids of a list, page by page.
async fn pages(store: &Store, order: &[Order], conditions: &[Condition], size: u64) -> Vec<String> {
    let mut ids = Vec::new();
    loop {
        let listing = Listing {
            conditions: conditions.to_vec(),
            order: order.to_vec(),
            limit: size,
            offset: ids.len() as u64,
            after: None,
        };
        let mut db = store.lister().await.unwrap();
        let (page, total) = db.task_instances(&listing).await.unwrap();
        if page.is_empty() {
            assert_eq!(ids.len() as i64, total, "{order:?}");
            return ids;
        }
        ids.extend(page.iter().map(|ti| ti.id.to_string()));
    }
}

#[tokio::test]
async fn pages_of_many_rows_hold_each_once_in_every_order_and_both_ways_alike() {
    let orders = [
        "map_index",
        "start_date",
        "end_date",
        DURATION,
        "try_number",
        "operator",
        "rendered_map_index",
        "state",
        "id",
        "pid",
        RUN_AFTER,
        LOGICAL_DATE,
        INTERVAL_START,
        INTERVAL_END,
    ];
    for (store, _folder) in filled().await {
        for column in orders {
            let forward = pages(&store, &by(column, false), &[], 1999).await;
            assert_eq!(forward.iter().collect::<BTreeSet<_>>().len(), 6400, "{column}");
            let mut backward = pages(&store, &by(column, true), &[], 1777).await;
            backward.reverse();
            // Task instances of one run stay in their order when runs go the other way.
            if [RUN_AFTER, LOGICAL_DATE, INTERVAL_START, INTERVAL_END].contains(&column) {
                let (forward, backward): (BTreeSet<_>, BTreeSet<_>) =
                    (forward.iter().collect(), backward.iter().collect());
                assert_eq!(forward, backward, "{column}");
            } else {
                assert!(forward == backward, "{column}: the two ways differ");
            }
            // Few that fit are found in another way, in the same order.
            let few = [Condition::Is("state", "failed".into())];
            let failed = pages(&store, &by(column, false), &few, 7).await;
            assert_eq!(failed.len(), 64, "{column}");
            let unique = ["start_date", "end_date", DURATION].contains(&column);
            let place = |id: &String| forward.iter().position(|other| other == id);
            let places: Vec<_> = failed.iter().map(place).collect();
            assert!(!unique || places.is_sorted(), "{column}: {places:?}");
        }
        let of_dag = [Condition::Contains("dag_id", vec!["LED_3".to_owned()])];
        assert_eq!(
            pages(&store, &by("start_date", true), &of_dag, 100).await.len(),
            640
        );
        let of_run = [Condition::Contains("run_id", vec!["d__1%9".to_owned()])];
        // 19, those between 109 and 189 that end with 9, and 190 to 199.
        assert_eq!(pages(&store, &by("id", false), &of_run, 100).await.len(), 20 * 20);
        store.close().await;
    }
}

#[tokio::test]
async fn a_list_that_takes_too_long_is_ended_and_the_others_go_on() {
    const ENDLESS: &str = "(SELECT COUNT(*) FROM task_instance a, task_instance b, task_instance c, task_instance d, \
                           task_instance e, task_instance f)";
    for world in worlds(100).await {
        world.run("r").await.unwrap();
        let listing = |conditions| Listing {
            conditions,
            order: by("start_date", true),
            limit: 10,
            ..Listing::default()
        };
        let endless = async {
            let mut db = world.store.lister().await.unwrap();
            let begin = Instant::now();
            let outcome = db
                .task_instances(&listing(vec![Condition::Is(ENDLESS, Value::Integer(0))]))
                .await;
            (outcome, begin.elapsed())
        };
        let others = async {
            let mut longest = Duration::ZERO;
            for _ in 0..50 {
                let begin = Instant::now();
                let mut db = world.store.lister().await.unwrap();
                assert_eq!(db.task_instances(&listing(Vec::new())).await.unwrap().1, 100);
                let mut db = world.store.reader().await.unwrap();
                assert!(db.run(&"d".into(), &"r".into()).await.unwrap().is_some());
                longest = longest.max(begin.elapsed());
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            longest
        };
        let ((outcome, took), longest) = tokio::join!(endless, others);
        assert!(
            matches!(outcome, Err(StoreError::TooSlow { seconds: 10 })),
            "{outcome:?}"
        );
        assert!((10..20).contains(&took.as_secs()), "{took:?}");
        assert!(longest < Duration::from_secs(2), "{longest:?}");
        // Its connection is of use again.
        for _ in 0..5 {
            let mut db = world.store.lister().await.unwrap();
            assert_eq!(db.task_instances(&listing(Vec::new())).await.unwrap().1, 100);
        }
    }
}
