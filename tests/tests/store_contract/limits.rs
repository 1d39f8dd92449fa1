//! How long texts may be, and which of them are the same.

use super::world::{World, worlds};
use chrono::Utc;
use model::TaskInstanceId;
use std::collections::BTreeMap;
use store::repo::{ConnectionRecord, NewXCom};
use store::{Cipher, StoreError, limits};
use tokio::task::JoinSet;

/// So many letters, of four bytes each.
fn letters(count: usize) -> String {
    "\u{1d51e}".repeat(count)
}

async fn set_variable(world: &World, key: &str) -> Result<(), StoreError> {
    store::transact!(world.store, "set", |tx| tx
        .set_variable(key, "v", None, &Cipher::default())
        .await)
}

async fn set_connection(world: &World, conn_id: &str, conn_type: &str) -> Result<(), StoreError> {
    let record = ConnectionRecord {
        conn_id: conn_id.to_owned(),
        conn_type: conn_type.to_owned(),
        ..ConnectionRecord::default()
    };
    store::transact!(world.store, "set", |tx| tx
        .set_connection(&record, &Cipher::default())
        .await)
}

async fn set_xcom(world: &World, ti: TaskInstanceId, key: &str) -> Result<(), StoreError> {
    let mut db = world.store.reader().await?;
    let ti = db.task_instance_by_id(ti).await?;
    drop(db);
    let ti = ti.ok_or_else(|| StoreError::Inconsistent("no task instance".to_owned()))?;
    let xcom = NewXCom {
        key: key.to_owned(),
        value: "1".to_owned(),
        mapped_length: None,
    };
    store::transact!(world.store, "set", |tx| tx.set_xcom(&ti, &xcom, Utc::now()).await)
}

#[tokio::test]
async fn texts_at_their_limit_are_stored_and_longer_ones_are_refused_by_both_stores() {
    for world in worlds(1).await {
        let run = world.run("r").await.unwrap();
        let ti = world
            .store
            .reader()
            .await
            .unwrap()
            .task_instances_of(run)
            .await
            .unwrap()[0]
            .id;
        let limits = [
            limits::VARIABLE_KEY,
            limits::CONNECTION_ID,
            limits::CONNECTION_TYPE,
            limits::POOL,
            limits::RUN_ID,
            limits::XCOM_KEY,
        ];
        for limit in limits {
            let set = async |text: String| match (limit.table, limit.column) {
                ("variable", _) => set_variable(&world, &text).await,
                ("connection", "conn_id") => set_connection(&world, &text, "t").await,
                ("connection", _) => set_connection(&world, "c", &text).await,
                ("slot_pool", _) => store::transact!(world.store, "set", |tx| tx
                    .create_pool(&text.as_str().into(), 1, None, false)
                    .await),
                ("dag_run", _) => world.run(&text).await.map(|_| ()),
                _ => set_xcom(&world, ti, &text).await,
            };
            set(letters(limit.most))
                .await
                .unwrap_or_else(|error| panic!("{limit:?}: {error}"));
            let refused = set(letters(limit.most + 1)).await;
            assert!(
                matches!(refused, Err(StoreError::TooLong { most, .. }) if most == limit.most),
                "{limit:?}: {refused:?}"
            );
        }
    }
}

#[tokio::test]
async fn columns_hold_what_the_table_of_limits_says() {
    let Some(url) = harness::mariadb_database() else {
        return;
    };
    let store = store::Store::open_mariadb(&url, 2).await.unwrap();
    store.migrate().await.unwrap();
    let sql = "SELECT table_name, column_name, character_maximum_length, collation_name FROM information_schema.columns \
               WHERE table_schema = DATABASE() AND collation_name IS NOT NULL";
    let mut lengths = BTreeMap::new();
    for line in harness::mariadb_query(&url, sql).lines() {
        let fields: Vec<&str> = line.split('\t').collect();
        assert!(
            !fields[3].ends_with("_bin") || fields[3].contains("nopad"),
            "{line}"
        );
        lengths.insert(
            (fields[0].to_owned(), fields[1].to_owned()),
            fields[2].parse::<usize>().unwrap(),
        );
    }
    let sql = "SELECT table_name, column_name FROM information_schema.columns WHERE table_schema = DATABASE() \
               AND data_type IN ('varchar', 'char') AND is_generated = 'NEVER' AND table_name <> 'schema_migration'";
    let columns = limits::of_columns();
    for line in harness::mariadb_query(&url, sql).lines() {
        let (table, column) = line.split_once('\t').unwrap();
        assert!(
            columns
                .iter()
                .any(|limit| (limit.table, limit.column) == (table, column)),
            "{line} is not in the table"
        );
    }
    for limit in limits::ALL.iter().chain(&columns) {
        let length = lengths.get(&(limit.table.to_owned(), limit.column.to_owned()));
        assert_eq!(length, Some(&limit.most), "{limit:?}");
    }
}

#[tokio::test]
async fn keys_that_differ_by_a_blank_or_by_case_are_different_keys() {
    for world in worlds(1).await {
        let keys = ["sp", "sp ", "sp  ", "SP", " sp", "s\u{e9}", "se"];
        for key in keys {
            set_variable(&world, key).await.unwrap();
            set_connection(&world, key, "t").await.unwrap();
            store::transact!(world.store, "set", |tx| tx
                .create_pool(&key.into(), 1, None, false)
                .await)
            .unwrap();
            world.run(key).await.unwrap();
        }
        let mut db = world.store.reader().await.unwrap();
        assert_eq!(db.variables(&Cipher::default()).await.unwrap().len(), keys.len());
        assert_eq!(
            db.connections(&Cipher::default()).await.unwrap().len(),
            keys.len()
        );
        for key in keys {
            let found = db.variable(key, &Cipher::default()).await.unwrap().unwrap();
            assert_eq!(found.key, key);
            assert_eq!(
                db.run(&"d".into(), &key.into())
                    .await
                    .unwrap()
                    .unwrap()
                    .run_id
                    .as_str(),
                key
            );
        }
    }
}

#[tokio::test]
async fn a_value_too_large_for_the_database_is_refused_and_leaves_the_store_usable() {
    for world in worlds(1).await {
        let at_limit = "v".repeat(limits::VALUE_BYTES);
        let cipher = Cipher::default();
        store::transact!(world.store, "set", |tx| tx
            .set_variable("k", &at_limit, None, &cipher)
            .await)
        .unwrap();
        let more = format!("{at_limit}v");
        let refused = store::transact!(world.store, "set", |tx| tx
            .set_variable("k", &more, None, &cipher)
            .await);
        assert!(matches!(refused, Err(StoreError::TooLarge { .. })), "{refused:?}");
        let found = world
            .store
            .reader()
            .await
            .unwrap()
            .variable("k", &cipher)
            .await
            .unwrap();
        assert_eq!(found.unwrap().value.len(), limits::VALUE_BYTES);
    }
}

#[tokio::test]
async fn one_of_many_who_create_the_same_succeeds() {
    for world in worlds(1).await {
        let made = |kind: &'static str| {
            let store = world.store.clone();
            async move {
                let outcome: Result<(), StoreError> = store::transact!(store, "create", |tx| match kind {
                    "variable" => tx.create_variable("k", "v", None, &Cipher::default()).await,
                    "connection" => {
                        let record = ConnectionRecord {
                            conn_id: "k".to_owned(),
                            ..ConnectionRecord::default()
                        };
                        tx.create_connection(&record, &Cipher::default()).await
                    }
                    _ => tx.create_pool(&"k".into(), 1, None, false).await,
                });
                match outcome {
                    Ok(()) => true,
                    Err(StoreError::Duplicate { .. }) => false,
                    Err(error) => panic!("{kind}: {error}"),
                }
            }
        };
        for kind in ["variable", "connection", "pool"] {
            let all: JoinSet<_> = (0..20).map(|_| made(kind)).collect();
            let winners = all.join_all().await.into_iter().filter(|won| *won).count();
            assert_eq!(winners, 1, "{kind}");
        }
    }
}
