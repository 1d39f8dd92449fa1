//! XComs.

use super::list::Listing;
use super::tasks::TaskInstanceRecord;
use crate::sql::{Row, Value};
use crate::unit_of_work::Tx;
use crate::{StoreError, limits, params};
use model::{DagId, DagRunKey, MapIndex, RunId, TaskId, Timestamp};

/// A value that a task left.
#[derive(Debug, Clone)]
pub struct XComRecord {
    /// The run.
    pub run_key: DagRunKey,
    /// The DAG.
    pub dag_id: DagId,
    /// The run's name.
    pub run_id: RunId,
    /// The task.
    pub task_id: TaskId,
    /// Which of its mapped instances.
    pub map_index: MapIndex,
    /// Name of the value.
    pub key: String,
    /// JSON.
    pub value: String,
    /// When it was left.
    pub created_at: Timestamp,
}

/// A value to leave.
#[derive(Debug, Clone)]
pub struct NewXCom {
    /// Name of the value.
    pub key: String,
    /// JSON.
    pub value: String,
    /// Length of the value, where a mapped task may expand over it.
    pub mapped_length: Option<i64>,
}

const COLUMNS: &str = "run_key, dag_id, run_id, task_id, map_index, xcom_key, value, created_at";

fn read(mut row: Row) -> Result<XComRecord, StoreError> {
    Ok(XComRecord {
        run_key: row.next()?,
        dag_id: row.next()?,
        run_id: row.next()?,
        task_id: row.next()?,
        map_index: row.next()?,
        key: row.next()?,
        value: row.next()?,
        created_at: row.next()?,
    })
}

impl Tx {
    /// Leaves a value of a task instance; one of the same name is overwritten.
    ///
    /// # Errors
    /// As the database says; when the key is too long.
    pub async fn set_xcom(
        &mut self,
        ti: &TaskInstanceRecord,
        xcom: &NewXCom,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let key = "run_key, task_id, map_index, xcom_key";
        let tail = self
            .dialect()
            .on_duplicate(key, &["value", "mapped_length", "created_at"]);
        self.insert_xcom(ti, xcom, &tail, now).await
    }

    /// Leaves a new value of a task instance.
    ///
    /// # Errors
    /// [`StoreError::Duplicate`] when there is one of that name; when the key is too long.
    pub async fn create_xcom(
        &mut self,
        ti: &TaskInstanceRecord,
        xcom: &NewXCom,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        self.insert_xcom(ti, xcom, "", now).await
    }

    /// Changes a value of a task instance. Returns `true` if there is one.
    ///
    /// # Errors
    /// As the database says.
    pub async fn change_xcom(
        &mut self,
        ti: &TaskInstanceRecord,
        xcom: &NewXCom,
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        let sql = "UPDATE xcom SET value = ?, mapped_length = ?, created_at = ? \
                   WHERE run_key = ? AND task_id = ? AND map_index = ? AND xcom_key = ?";
        let values = params![
            &xcom.value,
            xcom.mapped_length,
            now,
            ti.run_key,
            &ti.task_id,
            ti.map_index,
            &xcom.key,
        ];
        Ok(self.execute(sql, values).await?.rows == 1)
    }

    async fn insert_xcom(
        &mut self,
        ti: &TaskInstanceRecord,
        xcom: &NewXCom,
        tail: &str,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        limits::XCOM_KEY.check(&xcom.key)?;
        let sql = format!(
            "INSERT INTO xcom (run_key, task_id, map_index, xcom_key, dag_id, run_id, value, mapped_length, created_at) \
             VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?){tail}"
        );
        let values = params![
            ti.run_key,
            &ti.task_id,
            ti.map_index,
            &xcom.key,
            &ti.dag_id,
            &ti.run_id,
            &xcom.value,
            xcom.mapped_length,
            now,
        ];
        self.execute(&sql, values).await.map(|_| ())
    }

    /// One value.
    ///
    /// # Errors
    /// As the database says.
    pub async fn xcom(
        &mut self,
        key: DagRunKey,
        task_id: &TaskId,
        map_index: MapIndex,
        name: &str,
    ) -> Result<Option<XComRecord>, StoreError> {
        let sql = format!(
            "SELECT {COLUMNS} FROM xcom WHERE run_key = ? AND task_id = ? AND map_index = ? AND xcom_key = ?"
        );
        self.query_one(&sql, params![key, task_id, map_index, name])
            .await?
            .map(read)
            .transpose()
    }

    /// Keys of all that a task instance left behind.
    ///
    /// # Errors
    /// As the database says.
    pub async fn xcom_keys(&mut self, ti: &TaskInstanceRecord) -> Result<Vec<String>, StoreError> {
        let sql =
            "SELECT xcom_key FROM xcom WHERE run_key = ? AND task_id = ? AND map_index = ? ORDER BY xcom_key";
        self.query(sql, params![ti.run_key, &ti.task_id, ti.map_index])
            .await?
            .into_iter()
            .map(|mut row| row.next())
            .collect()
    }

    /// The values of that name of all instances of a task, by map index.
    ///
    /// # Errors
    /// As the database says.
    pub async fn xcom_series(
        &mut self,
        key: DagRunKey,
        task_id: &TaskId,
        name: &str,
    ) -> Result<Vec<XComRecord>, StoreError> {
        let sql = format!(
            "SELECT {COLUMNS} FROM xcom WHERE run_key = ? AND task_id = ? AND xcom_key = ? ORDER BY map_index"
        );
        self.query(&sql, params![key, task_id, name])
            .await?
            .into_iter()
            .map(read)
            .collect()
    }

    /// The latest value of that name from this run or one before it.
    ///
    /// # Errors
    /// As the database says.
    pub async fn xcom_with_past(
        &mut self,
        dag_id: &DagId,
        up_to: Timestamp,
        task_id: &TaskId,
        map_index: MapIndex,
        name: &str,
    ) -> Result<Option<XComRecord>, StoreError> {
        let sql = "SELECT x.run_key, x.dag_id, x.run_id, x.task_id, x.map_index, x.xcom_key, x.value, x.created_at \
                   FROM xcom x JOIN dag_run r ON r.id = x.run_key WHERE r.dag_id = ? AND r.logical_date <= ? \
                   AND x.task_id = ? AND x.map_index = ? AND x.xcom_key = ? ORDER BY r.logical_date DESC LIMIT 1";
        let values = params![dag_id, up_to, task_id, map_index, name];
        self.query_one(sql, values).await?.map(read).transpose()
    }

    /// Deletes one value.
    ///
    /// # Errors
    /// As the database says.
    pub async fn delete_xcom(
        &mut self,
        key: DagRunKey,
        task_id: &TaskId,
        map_index: MapIndex,
        name: &str,
    ) -> Result<bool, StoreError> {
        let sql = "DELETE FROM xcom WHERE run_key = ? AND task_id = ? AND map_index = ? AND xcom_key = ?";
        Ok(self
            .execute(sql, params![key, task_id, map_index, name])
            .await?
            .rows
            == 1)
    }

    /// Values that fit, and how many there are.
    ///
    /// # Errors
    /// As the database says.
    pub async fn xcoms(&mut self, listing: &Listing) -> Result<(Vec<XComRecord>, i64), StoreError> {
        let (rows, total) = self.list("xcom", COLUMNS, listing).await?;
        Ok((rows.into_iter().map(read).collect::<Result<_, _>>()?, total))
    }

    /// Logical dates of the runs with these keys, for lists that show them beside other things.
    ///
    /// # Errors
    /// As the database says.
    pub async fn run_dates(
        &mut self,
        keys: &[DagRunKey],
    ) -> Result<Vec<(DagRunKey, Option<Timestamp>, Timestamp)>, StoreError> {
        if keys.is_empty() {
            return Ok(Vec::new());
        }
        let values: Vec<Value> = keys.iter().map(|key| Value::from(*key)).collect();
        let marks = crate::sql::placeholders(values.len());
        let sql = format!("SELECT id, logical_date, run_after FROM dag_run WHERE id IN ({marks})");
        let read = |mut row: Row| Ok((row.next()?, row.next()?, row.next()?));
        self.query(&sql, &values).await?.into_iter().map(read).collect()
    }
}
