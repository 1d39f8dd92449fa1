//! Bodies of requests, checked strictly, with pydantic's words for what is wrong.

use super::error::{ApiError, ApiResult, problem, problem_with};
use axum::http::{HeaderMap, StatusCode, header};
use model::json::{Text, with_floats};
use model::python_text::repr as python_repr;

use model::Timestamp;
use serde_json::{Map, Value, json};

/// A body that is being taken apart. Each field is asked for once, in declaration order; [`Body::finish`] tells all that
/// is wrong at once.
#[derive(Debug)]
pub(crate) struct Body {
    fields: Map<String, Value>,
    whole: Value,
    /// Where it stands; `["body"]` for the body of a request.
    place: Vec<Value>,
    problems: Vec<Value>,
}

impl Body {
    /// Reads a JSON object.
    pub(crate) fn read(headers: &HeaderMap, bytes: &[u8]) -> ApiResult<Self> {
        if bytes.is_empty() {
            return Err(ApiError::invalid(vec![problem(
                "missing",
                &[json!("body")],
                "Field required",
                Value::Null,
            )]));
        }
        let Ok(text) = std::str::from_utf8(bytes) else {
            return Err(ApiError::bad_request("There was an error parsing the body"));
        };
        let kind = headers
            .get(header::CONTENT_TYPE)
            .and_then(|value| value.to_str().ok())
            .unwrap_or("application/json");
        if !kind.to_ascii_lowercase().contains("json") {
            return Err(not_an_object(&[json!("body")], json!(text)));
        }
        let whole = match model::json::read(text) {
            Ok(value) => value,
            Err(error) => return Err(bad_json(text, &error)),
        };
        Self::of(whole, vec![json!("body")])
    }

    /// An object that stands somewhere in the body of a request.
    pub(crate) fn of(whole: Value, place: Vec<Value>) -> ApiResult<Self> {
        match whole.clone() {
            Value::Object(fields) => Ok(Self {
                fields,
                whole,
                place,
                problems: Vec::new(),
            }),
            other => Err(not_an_object(&place, other)),
        }
    }

    fn at(&self, key: &str) -> Vec<Value> {
        let mut location = self.place.clone();
        location.push(json!(key));
        location
    }

    fn wrong(&mut self, key: &str, kind: &str, message: &str, input: Value) {
        let location = self.at(key);
        self.problems.push(problem(kind, &location, message, input));
    }

    pub(crate) fn has(&self, key: &str) -> bool {
        self.fields.contains_key(key)
    }

    /// Whether the body had a field, also one that has been taken since.
    pub(crate) fn had(&self, key: &str) -> bool {
        self.whole.get(key).is_some()
    }

    fn missing(&mut self, key: &str) {
        let whole = self.whole.clone();
        self.wrong(key, "missing", "Field required", whole);
    }

    /// A field that holds no further values: a large number in it is the float that is nearest.
    fn take(&mut self, key: &str) -> Option<Value> {
        let value = self.fields.shift_remove(key)?;
        Some(if value.is_string() {
            with_floats(&value)
        } else {
            value
        })
    }

    /// A text that must be there.
    pub(crate) fn required_text(&mut self, key: &str) -> String {
        if !self.has(key) {
            self.missing(key);
            return String::new();
        }
        match self.take(key) {
            Some(Value::String(text)) => text,
            other => {
                self.wrong(
                    key,
                    "string_type",
                    "Input should be a valid string",
                    other.unwrap_or_default(),
                );
                String::new()
            }
        }
    }

    /// A text of at most so many characters that must be there.
    pub(crate) fn required_text_within(&mut self, key: &str, most: usize) -> String {
        let text = self.required_text(key);
        self.check_length(key, &text, most);
        text
    }

    /// Returns `true` if a text has at most so many characters; tells if it has not.
    fn check_length(&mut self, key: &str, text: &str, most: usize) -> bool {
        if text.chars().count() <= most {
            return true;
        }
        let message = format!("String should have at most {most} characters");
        let location = self.at(key);
        self.problems.push(problem_with(
            "string_too_long",
            &location,
            &message,
            json!(text),
            json!({"max_length": most}),
        ));
        false
    }

    /// A text of at most so many characters that may be absent or null.
    pub(crate) fn text(&mut self, key: &str, most: usize) -> Option<String> {
        match self.take(key) {
            None | Some(Value::Null) => None,
            Some(Value::String(text)) if !self.check_length(key, &text, most) => None,
            Some(Value::String(text)) => Some(text),
            Some(other) => {
                self.wrong(key, "string_type", "Input should be a valid string", other);
                None
            }
        }
    }

    /// A truth; absent is an error if required, null always.
    pub(crate) fn boolean(&mut self, key: &str, default: Option<bool>) -> bool {
        match (self.take(key), default) {
            (None, Some(default)) => default,
            (None, None) => {
                self.missing(key);
                false
            }
            (Some(Value::Bool(yes)), _) => yes,
            (Some(Value::Null), _) => {
                self.wrong(key, "bool_type", "Input should be a valid boolean", Value::Null);
                false
            }
            (Some(other), _) => {
                let word = other
                    .as_str()
                    .map(str::to_ascii_lowercase)
                    .or_else(|| other.as_i64().map(|n| n.to_string()));
                match word.as_deref().and_then(super::query::truth) {
                    Some(yes) => yes,
                    None => {
                        let message = "Input should be a valid boolean, unable to interpret input";
                        self.wrong(key, "bool_parsing", message, other);
                        false
                    }
                }
            }
        }
    }

    /// A whole number of at least `least`.
    pub(crate) fn integer(&mut self, key: &str, least: Option<i64>, required: bool) -> Option<i64> {
        let value = match self.take(key) {
            None if required => {
                self.missing(key);
                return None;
            }
            None | Some(Value::Null) if !required => return None,
            value => value.unwrap_or_default(),
        };
        let number = value
            .as_i64()
            .or_else(|| value.as_str().and_then(|text| text.trim().parse().ok()));
        let Some(number) = number else {
            if value.is_f64() {
                let message = "Input should be a valid integer, got a number with a fractional part";
                self.wrong(key, "int_from_float", message, value);
            } else if value.is_string() {
                let message = "Input should be a valid integer, unable to parse string as an integer";
                self.wrong(key, "int_parsing", message, value);
            } else {
                self.wrong(key, "int_type", "Input should be a valid integer", value);
            }
            return None;
        };
        if let Some(least) = least.filter(|least| number < *least) {
            let message = format!("Input should be greater than or equal to {least}");
            let location = self.at(key);
            self.problems.push(problem_with(
                "greater_than_equal",
                &location,
                &message,
                value,
                json!({"ge": least}),
            ));
            return None;
        }
        Some(number)
    }

    /// An object; absent or null is an empty one.
    pub(crate) fn object(&mut self, key: &str) -> Value {
        match self.fields.shift_remove(key) {
            None | Some(Value::Null) => json!({}),
            Some(object @ Value::Object(_)) => object,
            Some(other) => {
                self.wrong(key, "dict_type", "Input should be a valid dictionary", other);
                json!({})
            }
        }
    }

    /// A number that may be absent or null.
    pub(crate) fn float(&mut self, key: &str) -> Option<f64> {
        match self.take(key) {
            None | Some(Value::Null) => None,
            Some(value) => {
                let number = value
                    .as_f64()
                    .or_else(|| value.as_str().and_then(|text| text.trim().parse().ok()));
                if number.is_none() {
                    self.wrong(key, "float_type", "Input should be a valid number", value);
                }
                number
            }
        }
    }

    /// A list of texts that may be absent or null; nulls in it are `None`.
    pub(crate) fn texts(&mut self, key: &str) -> Option<Vec<Option<String>>> {
        match self.fields.shift_remove(key) {
            None | Some(Value::Null) => None,
            Some(Value::Array(items)) => {
                let mut texts = Vec::with_capacity(items.len());
                for item in items {
                    match item {
                        Value::Null => texts.push(None),
                        Value::String(text) => match Text::of(&text) {
                            Text::Plain(text) => texts.push(Some(text.to_owned())),
                            Text::Integer(_) => self.wrong(
                                key,
                                "string_type",
                                "Input should be a valid string",
                                Value::String(text),
                            ),
                        },
                        other => self.wrong(key, "string_type", "Input should be a valid string", other),
                    }
                }
                Some(texts)
            }
            Some(other) => {
                self.wrong(key, "list_type", "Input should be a valid list", other);
                None
            }
        }
    }

    /// A list that must be there.
    pub(crate) fn list(&mut self, key: &str) -> Vec<Value> {
        match self.fields.shift_remove(key) {
            Some(Value::Array(items)) => items,
            None => {
                self.missing(key);
                Vec::new()
            }
            Some(other) => {
                self.wrong(key, "list_type", "Input should be a valid list", other);
                Vec::new()
            }
        }
    }

    /// Anything that must be there.
    pub(crate) fn any(&mut self, key: &str) -> Value {
        match self.fields.shift_remove(key) {
            Some(value) => value,
            None => {
                self.missing(key);
                Value::Null
            }
        }
    }

    /// An instant that must be there; without a time zone it is taken as UTC.
    pub(crate) fn required_instant(&mut self, key: &str) -> Option<Timestamp> {
        if let Some(Value::String(text)) = self.fields.get(key)
            && let Ok((at, _)) = super::query::read_instant(text)
        {
            self.fields.shift_remove(key);
            return Some(at);
        }
        self.instant(key, true)
    }

    /// An instant with its time zone.
    pub(crate) fn instant(&mut self, key: &str, required: bool) -> Option<Timestamp> {
        match self.take(key) {
            None if required => {
                self.missing(key);
                None
            }
            None | Some(Value::Null) => None,
            Some(Value::Number(n)) => n
                .as_f64()
                .and_then(|seconds| model::time::from_micros((seconds * 1e6) as i64)),
            Some(Value::String(text)) => match super::query::read_instant(&text) {
                Ok((at, true)) => Some(at),
                Ok((_, false)) => {
                    self.wrong(
                        key,
                        "timezone_aware",
                        "Input should have timezone info",
                        json!(text),
                    );
                    None
                }
                Err(why) => {
                    let message = format!("Input should be a valid datetime or date, {why}");
                    let location = self.at(key);
                    self.problems.push(problem_with(
                        "datetime_from_date_parsing",
                        &location,
                        &message,
                        json!(text),
                        json!({"error": why}),
                    ));
                    None
                }
            },
            Some(other) => {
                self.wrong(key, "datetime_type", "Input should be a valid datetime", other);
                None
            }
        }
    }

    /// Something is wrong with the body as a whole.
    pub(crate) fn refuse(&mut self, text: &str) {
        let whole = self.whole.clone();
        let message = format!("Value error, {text}");
        self.problems.push(problem_with(
            "value_error",
            &self.place,
            &message,
            whole,
            json!({"error": {}}),
        ));
    }

    /// One field has a value that will not do.
    pub(crate) fn refuse_value(&mut self, key: &str, text: &str, input: &str) {
        let location = self.at(key);
        let message = format!("Value error, {text}");
        self.problems.push(problem_with(
            "value_error",
            &location,
            &message,
            json!(input),
            json!({"error": {}}),
        ));
    }

    /// One field has a value that is none of those allowed.
    pub(crate) fn refuse_word(&mut self, key: &str, allowed: &str, input: &str) {
        let location = self.at(key);
        let message = format!("Input should be {allowed}");
        self.problems.push(problem_with(
            "enum",
            &location,
            &message,
            json!(input),
            json!({"expected": allowed}),
        ));
    }

    /// Tells what is wrong; fields that nobody asked for are, too.
    pub(crate) fn finish(mut self) -> ApiResult<()> {
        let extra: Vec<(String, Value)> = std::mem::take(&mut self.fields).into_iter().collect();
        for (key, value) in extra {
            self.wrong(&key, "extra_forbidden", "Extra inputs are not permitted", value);
        }
        if self.problems.is_empty() {
            Ok(())
        } else {
            Err(ApiError::invalid(self.problems))
        }
    }

    /// The same as the text that pydantic prints, which `/auth/token` answers with.
    pub(crate) fn finish_as_text(mut self, model: &str) -> ApiResult<()> {
        let extra: Vec<(String, Value)> = std::mem::take(&mut self.fields).into_iter().collect();
        for (key, value) in extra {
            self.wrong(&key, "extra_forbidden", "Extra inputs are not permitted", value);
        }
        if self.problems.is_empty() {
            return Ok(());
        }
        let count = self.problems.len();
        let mut text = format!(
            "{count} validation error{} for {model}",
            if count == 1 { "" } else { "s" }
        );
        for problem in &self.problems {
            let kind = problem["type"].as_str().unwrap_or_default();
            let (repr, class) = python_repr(&problem["input"]);
            text.push_str(&format!(
                "\n{}\n  {} [type={kind}, input_value={repr}, input_type={class}]\n    For further information visit \
                 https://errors.pydantic.dev/2.14/v/{kind}",
                problem["loc"][1].as_str().unwrap_or_default(),
                problem["msg"].as_str().unwrap_or_default(),
            ));
        }
        Err(ApiError::detail(StatusCode::UNPROCESSABLE_ENTITY, text))
    }
}

fn not_an_object(place: &[Value], input: Value) -> ApiError {
    let message = "Input should be a valid dictionary or object to extract fields from";
    ApiError::invalid(vec![problem("model_attributes_type", place, message, input)])
}

fn bad_json(text: &str, error: &serde_json::Error) -> ApiError {
    let line_start: usize = text
        .split('\n')
        .take(error.line().saturating_sub(1))
        .map(|line| line.len() + 1)
        .sum();
    let offset = (line_start + error.column()).saturating_sub(1);
    // The place may be within a letter.
    let offset = text.floor_char_boundary(offset.min(text.len()));
    let near = text[offset..].trim_start();
    let why = if near.is_empty() && !text.trim_start().starts_with('{') || text.trim().is_empty() {
        "Expecting value"
    } else if error.to_string().contains("key must be a string")
        || error.to_string().contains("EOF while parsing an object")
    {
        "Expecting property name enclosed in double quotes"
    } else if error.to_string().contains("expected `:`") {
        "Expecting ':' delimiter"
    } else if error.to_string().contains("expected `,`") {
        "Expecting ',' delimiter"
    } else if error.to_string().contains("trailing characters") {
        "Extra data"
    } else {
        "Expecting value"
    };
    let location = [json!("body"), json!(offset)];
    ApiError::invalid(vec![problem_with(
        "json_invalid",
        &location,
        "JSON decode error",
        json!({}),
        json!({"error": why}),
    )])
}
