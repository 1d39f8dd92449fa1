//! Paging by offset, or by a cursor that stays right while rows come and go.

use super::error::{ApiError, ApiResult};
use super::query::{Query, listing};
use crate::App;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};
use store::repo::{Condition, Listing, Order, Paged};
use store::sql::Value as Stored;

/// Above this a list is not counted for clients that page by cursor.
const COUNTED: i64 = 50_000;
/// In front of a cursor that leads to the page before.
const BACKWARD: char = '~';

/// Which page a client wants.
#[derive(Debug)]
pub(crate) enum Paging {
    /// `limit` and `offset`.
    Offset(u64, u64),
    /// `cursor`, empty for the first page.
    Cursor { limit: u64, from: Option<Place> },
}

/// The row at which a page begins, seen from the page that was shown.
#[derive(Debug)]
pub(crate) struct Place {
    backward: bool,
    values: Vec<Stored>,
}

/// Names the order that a cursor belongs to.
fn shape(order: &[Order]) -> Vec<String> {
    order
        .iter()
        .map(|order| format!("{}{}", if order.descending { "-" } else { "" }, order.column))
        .collect()
}

fn token(order: &[Order], values: &[Stored]) -> String {
    let values: Vec<Value> = values
        .iter()
        .map(|value| match value {
            Stored::Null => Value::Null,
            Stored::Integer(n) => json!(n),
            Stored::Real(n) => json!(n),
            Stored::Text(text) => json!(text),
            Stored::Bytes(bytes) => json!(String::from_utf8_lossy(bytes)),
        })
        .collect();
    URL_SAFE_NO_PAD.encode(json!([shape(order), values]).to_string())
}

fn place(text: &str, order: &[Order]) -> ApiResult<Place> {
    let backward = text.starts_with(BACKWARD);
    let bytes = URL_SAFE_NO_PAD
        .decode(text.trim_start_matches(BACKWARD))
        .map_err(|_| ApiError::bad_request("Invalid cursor token"))?;
    let structure = || ApiError::bad_request("Invalid cursor token structure");
    let (shown, values): (Vec<String>, Vec<Value>) =
        serde_json::from_slice(&bytes).map_err(|_| structure())?;
    if shown != shape(order) || values.len() != order.len() {
        return Err(ApiError::bad_request(
            "Cursor token does not match current query shape",
        ));
    }
    let stored = |value: Value| match value {
        Value::Null => Some(Stored::Null),
        Value::Number(n) => n
            .as_i64()
            .map(Stored::Integer)
            .or_else(|| n.as_f64().map(Stored::Real)),
        Value::String(text) => Some(Stored::Text(text)),
        Value::Bool(_) | Value::Array(_) | Value::Object(_) => None,
    };
    let values = values.into_iter().map(stored).collect::<Option<_>>();
    Ok(Place {
        backward,
        values: values.ok_or_else(structure)?,
    })
}

impl Paging {
    /// Reads it from a query; a `cursor` there, empty or not, wins over `offset`.
    pub(crate) fn read(query: &mut Query, app: &App, order: &[Order]) -> ApiResult<Self> {
        let (limit, offset) = query.page(app)?;
        match query.text("cursor") {
            None => Ok(Self::Offset(limit, offset)),
            Some("") => Ok(Self::Cursor { limit, from: None }),
            Some(text) => Ok(Self::Cursor {
                limit,
                from: Some(place(text, order)?),
            }),
        }
    }

    fn is_backward(&self) -> bool {
        matches!(self, Self::Cursor { from: Some(place), .. } if place.backward)
    }

    /// What to ask the store for.
    pub(crate) fn listing(&self, conditions: Vec<Condition>, order: &[Order]) -> Listing {
        let backward = self.is_backward();
        let order = order
            .iter()
            .map(|order| Order {
                descending: order.descending != backward,
                ..*order
            })
            .collect();
        match self {
            Self::Offset(limit, offset) => listing(conditions, order, (*limit, *offset)),
            // One more than wanted tells whether there is another page.
            Self::Cursor { limit, from } => Listing {
                after: from.as_ref().map(|place| place.values.clone()),
                ..listing(conditions, order, (limit.saturating_add(1), 0))
            },
        }
    }

    /// Cuts the rows to the page, in order, and gives the collection's fields beside its rows.
    pub(crate) async fn finish<T>(
        &self,
        app: &App,
        (table, order): (Paged, &[Order]),
        (rows, total): (&mut Vec<T>, i64),
        id: impl Fn(&T) -> Stored,
    ) -> ApiResult<Value> {
        let Self::Cursor { limit, from } = self else {
            return Ok(json!({
                "total_entries": total, "total_entries_limit": null, "next_cursor": null, "previous_cursor": null,
            }));
        };
        let limit = usize::try_from(*limit).unwrap_or(usize::MAX);
        let more = rows.len() > limit;
        rows.truncate(limit);
        let backward = self.is_backward();
        if backward {
            rows.reverse();
        }
        let (has_next, has_previous) = if backward {
            (true, more)
        } else {
            (more, from.is_some())
        };
        let mut ends = [None, None];
        let mut db = app.store.reader().await?;
        for (end, row) in ends.iter_mut().zip([rows.first(), rows.last()]) {
            if let Some(row) = row {
                *end = db
                    .place_of(table, order, id(row))
                    .await?
                    .map(|values| token(order, &values));
            }
        }
        let [first, last] = ends;
        Ok(json!({
            "total_entries": total.min(COUNTED),
            "total_entries_limit": COUNTED,
            "next_cursor": last.filter(|_| has_next),
            "previous_cursor": first.filter(|_| has_previous).map(|first| format!("{BACKWARD}{first}")),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_says_what_it_was_told_and_only_in_its_own_order() {
        let order = [
            Order {
                column: "run_after",
                descending: true,
            },
            Order {
                column: "id",
                descending: true,
            },
        ];
        let values = [Stored::Null, Stored::Integer(7)];
        let text = token(&order, &values);
        let read = place(&format!("~{text}"), &order).unwrap();
        assert!(read.backward);
        assert_eq!(read.values, values);
        assert!(place(&text, &order[..1]).is_err());
        assert!(place("!", &order).is_err());
    }
}
