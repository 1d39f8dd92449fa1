//! Variables, connections and pools.

use crate::sql::Row;
use crate::unit_of_work::Tx;
use crate::{Cipher, StoreError, params};
use model::PoolName;
use std::collections::HashMap;

/// A variable.
#[derive(Debug, Clone)]
#[expect(missing_docs, reason = "the names are those of Airflow's Variable")]
pub struct VariableRecord {
    pub key: String,
    pub value: String,
    pub description: Option<String>,
    pub is_encrypted: bool,
}

/// A connection.
#[derive(Debug, Clone, Default)]
#[expect(missing_docs, reason = "the names are those of Airflow's Connection")]
pub struct ConnectionRecord {
    pub conn_id: String,
    pub conn_type: String,
    pub description: Option<String>,
    pub host: Option<String>,
    pub schema: Option<String>,
    pub login: Option<String>,
    pub password: Option<String>,
    pub port: Option<i64>,
    pub extra: Option<String>,
}

/// A pool.
#[derive(Debug, Clone)]
#[expect(missing_docs, reason = "the names are those of Airflow's Pool")]
pub struct PoolRecord {
    pub id: i64,
    pub name: PoolName,
    pub slots: i64,
    pub description: Option<String>,
    pub include_deferred: bool,
}

/// Slots of a pool in use, by state.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are those of the states")]
pub struct PoolSlots {
    pub running: i64,
    pub queued: i64,
    pub scheduled: i64,
    pub deferred: i64,
}

const CONNECTION: &str =
    "conn_id, conn_type, description, host, schema_name, login, password, port, extra, is_encrypted";

/// A name for this setting of a variable or connection, by which DAG processors see that it is another one.
fn new_version() -> String {
    uuid::Uuid::new_v4().simple().to_string()
}

fn read_connection(mut row: Row, cipher: &Cipher) -> Result<ConnectionRecord, StoreError> {
    let mut record = ConnectionRecord {
        conn_id: row.next()?,
        conn_type: row.next()?,
        description: row.next()?,
        host: row.next()?,
        schema: row.next()?,
        login: row.next()?,
        password: row.next()?,
        port: row.next()?,
        extra: row.next()?,
    };
    let is_encrypted: bool = row.next()?;
    record.password = record
        .password
        .map(|text| cipher.open(text, is_encrypted))
        .transpose()?;
    record.extra = record
        .extra
        .map(|text| cipher.open(text, is_encrypted))
        .transpose()?;
    Ok(record)
}

impl Tx {
    /// The variable of that name.
    ///
    /// # Errors
    /// As the database says; when it cannot be decrypted.
    pub async fn variable(
        &mut self,
        key: &str,
        cipher: &Cipher,
    ) -> Result<Option<VariableRecord>, StoreError> {
        let sql = "SELECT var_key, value, description, is_encrypted FROM variable WHERE var_key = ?";
        self.query_one(sql, params![key])
            .await?
            .map(|row| read_variable(row, cipher))
            .transpose()
    }

    /// All variables by name.
    ///
    /// # Errors
    /// As the database says; when one cannot be decrypted.
    pub async fn variables(&mut self, cipher: &Cipher) -> Result<Vec<VariableRecord>, StoreError> {
        let sql = "SELECT var_key, value, description, is_encrypted FROM variable ORDER BY var_key";
        self.query(sql, &[])
            .await?
            .into_iter()
            .map(|row| read_variable(row, cipher))
            .collect()
    }

    /// Sets a variable.
    ///
    /// # Errors
    /// As the database says.
    pub async fn set_variable(
        &mut self,
        key: &str,
        value: &str,
        description: Option<&str>,
        cipher: &Cipher,
    ) -> Result<(), StoreError> {
        let (stored, is_encrypted) = cipher.seal(value);
        let tail = self
            .dialect()
            .on_duplicate("var_key", &["value", "description", "is_encrypted", "version"]);
        let sql = format!(
            "INSERT INTO variable (var_key, value, description, is_encrypted, version) VALUES (?, ?, ?, ?, ?){tail}"
        );
        let version = new_version();
        self.execute(&sql, params![key, stored, description, is_encrypted, version])
            .await
            .map(|_| ())
    }

    /// Deletes a variable. Whether there was one.
    ///
    /// # Errors
    /// As the database says.
    pub async fn delete_variable(&mut self, key: &str) -> Result<bool, StoreError> {
        Ok(self
            .execute("DELETE FROM variable WHERE var_key = ?", params![key])
            .await?
            .rows
            == 1)
    }

    /// The connection of that name.
    ///
    /// # Errors
    /// As the database says; when it cannot be decrypted.
    pub async fn connection(
        &mut self,
        conn_id: &str,
        cipher: &Cipher,
    ) -> Result<Option<ConnectionRecord>, StoreError> {
        let sql = format!("SELECT {CONNECTION} FROM connection WHERE conn_id = ?");
        self.query_one(&sql, params![conn_id])
            .await?
            .map(|row| read_connection(row, cipher))
            .transpose()
    }

    /// All connections by name.
    ///
    /// # Errors
    /// As the database says; when one cannot be decrypted.
    pub async fn connections(&mut self, cipher: &Cipher) -> Result<Vec<ConnectionRecord>, StoreError> {
        let sql = format!("SELECT {CONNECTION} FROM connection ORDER BY conn_id");
        self.query(&sql, &[])
            .await?
            .into_iter()
            .map(|row| read_connection(row, cipher))
            .collect()
    }

    /// Sets a connection.
    ///
    /// # Errors
    /// As the database says.
    pub async fn set_connection(
        &mut self,
        record: &ConnectionRecord,
        cipher: &Cipher,
    ) -> Result<(), StoreError> {
        let seal = |text: &Option<String>| text.as_ref().map(|text| cipher.seal(text).0);
        let is_encrypted = cipher.seal("").1;
        let tail = self.dialect().on_duplicate(
            "conn_id",
            &[
                "conn_type",
                "description",
                "host",
                "schema_name",
                "login",
                "password",
                "port",
                "extra",
                "is_encrypted",
                "version",
            ],
        );
        let sql = format!(
            "INSERT INTO connection ({CONNECTION}, version) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?){tail}"
        );
        let values = params![
            &record.conn_id,
            &record.conn_type,
            record.description.clone(),
            record.host.clone(),
            record.schema.clone(),
            record.login.clone(),
            seal(&record.password),
            record.port,
            seal(&record.extra),
            is_encrypted,
            new_version(),
        ];
        self.execute(&sql, values).await.map(|_| ())
    }

    /// Deletes a connection. Whether there was one.
    ///
    /// # Errors
    /// As the database says.
    pub async fn delete_connection(&mut self, conn_id: &str) -> Result<bool, StoreError> {
        Ok(self
            .execute("DELETE FROM connection WHERE conn_id = ?", params![conn_id])
            .await?
            .rows
            == 1)
    }

    /// All pools, oldest first.
    ///
    /// # Errors
    /// As the database says.
    pub async fn pools(&mut self) -> Result<Vec<PoolRecord>, StoreError> {
        let sql = "SELECT id, pool, slots, description, include_deferred FROM slot_pool ORDER BY id";
        let read = |mut row: Row| {
            Ok(PoolRecord {
                id: row.next()?,
                name: row.next()?,
                slots: row.next()?,
                description: row.next()?,
                include_deferred: row.next()?,
            })
        };
        self.query(sql, &[]).await?.into_iter().map(read).collect()
    }

    /// Creates a pool.
    ///
    /// # Errors
    /// [`StoreError::Duplicate`] when there is one of that name.
    pub async fn create_pool(
        &mut self,
        name: &PoolName,
        slots: i64,
        description: Option<&str>,
        include_deferred: bool,
    ) -> Result<(), StoreError> {
        let sql = "INSERT INTO slot_pool (pool, slots, description, include_deferred) VALUES (?, ?, ?, ?)";
        self.execute(sql, params![name, slots, description, include_deferred])
            .await?;
        self.tell_runs_of_pool(name).await
    }

    /// Makes sure that `default_pool` exists.
    ///
    /// # Errors
    /// As the database says.
    pub async fn ensure_default_pool(&mut self, slots: i64) -> Result<(), StoreError> {
        let head = self.dialect().insert_ignore();
        let sql = format!(
            "{head} slot_pool (pool, slots, description, include_deferred) VALUES ('default_pool', ?, ?, 0)"
        );
        self.execute(&sql, params![slots, "Default pool"])
            .await
            .map(|_| ())
    }

    /// Changes a pool. Whether there is one.
    ///
    /// # Errors
    /// As the database says.
    pub async fn update_pool(&mut self, name: &PoolName, to: &PoolRecord) -> Result<bool, StoreError> {
        let sql =
            "UPDATE slot_pool SET pool = ?, slots = ?, description = ?, include_deferred = ? WHERE pool = ?";
        let values = params![
            &to.name,
            to.slots,
            to.description.clone(),
            to.include_deferred,
            name
        ];
        let found = self.execute(sql, values).await?.rows == 1;
        self.tell_runs_of_pool(name).await?;
        self.tell_runs_of_pool(&to.name).await?;
        Ok(found)
    }

    /// Tells the schedulers of runs that wait for slots of a pool, which may have some now.
    async fn tell_runs_of_pool(&mut self, name: &PoolName) -> Result<(), StoreError> {
        let sql = "INSERT INTO run_event (run_key, created_at) \
                   SELECT DISTINCT run_key, ? FROM task_instance WHERE state = 'scheduled' AND pool = ?";
        self.execute(sql, params![chrono::Utc::now(), name])
            .await
            .map(|_| ())
    }

    /// Deletes a pool. Whether there was one.
    ///
    /// # Errors
    /// As the database says.
    pub async fn delete_pool(&mut self, name: &PoolName) -> Result<bool, StoreError> {
        Ok(self
            .execute("DELETE FROM slot_pool WHERE pool = ?", params![name])
            .await?
            .rows
            == 1)
    }

    /// Slots in use, by pool.
    ///
    /// # Errors
    /// As the database says.
    pub async fn pool_slots(&mut self) -> Result<HashMap<PoolName, PoolSlots>, StoreError> {
        let signed = if self.dialect() == crate::sql::Dialect::MariaDb {
            "SIGNED"
        } else {
            "INTEGER"
        };
        let sql = format!(
            "SELECT pool, state, CAST(SUM(pool_slots) AS {signed}) FROM task_instance \
             WHERE state IN ('running', 'queued', 'scheduled', 'deferred') GROUP BY pool, state"
        );
        let mut pools: HashMap<PoolName, PoolSlots> = HashMap::new();
        for mut row in self.query(&sql, &[]).await? {
            let (name, state, slots): (PoolName, String, i64) = (row.next()?, row.next()?, row.next()?);
            let pool = pools.entry(name).or_default();
            match state.as_str() {
                "running" => pool.running = slots,
                "queued" => pool.queued = slots,
                "scheduled" => pool.scheduled = slots,
                _ => pool.deferred = slots,
            }
        }
        Ok(pools)
    }
}

fn read_variable(mut row: Row, cipher: &Cipher) -> Result<VariableRecord, StoreError> {
    let (key, stored, description): (String, String, Option<String>) =
        (row.next()?, row.next()?, row.next()?);
    let is_encrypted = row.next()?;
    Ok(VariableRecord {
        key,
        value: cipher.open(stored, is_encrypted)?,
        description,
        is_encrypted,
    })
}
