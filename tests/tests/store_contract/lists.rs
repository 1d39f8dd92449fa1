//! Lists that are paged by the row that came last.

use super::world::worlds;
use chrono::Utc;
use model::DagRunKey;
use model::dag_run::DagRunState;
use std::collections::BTreeSet;
use store::Store;
use store::repo::{Condition, Listing, Order, Paged};
use store::sql::Value;

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
