//! Evaluates the syntax tree of a template with Python's semantics.

use super::arguments::Arguments;
use super::operators::{LONGEST, binary, compare, slice};
use super::value::{Declined, Outcome, Py};
use super::{filters, methods};
use minijinja::machinery::ast::{BinOpKind, Call, CallArg, Const, Expr, ForLoop, Spanned, Stmt, UnaryOpKind};
use std::collections::BTreeMap;
use std::rc::Rc;

/// Steps that rendering one template may take.
const STEPS: u32 = 1_000_000;
/// Calls within calls that are followed: syntax trees have no such bound of their own.
const DEEPEST: u32 = 100;

/// Names of the variables of one scope.
type Scope = BTreeMap<String, Py>;

/// One rendering of a template.
pub(super) struct Evaluation<'a> {
    source: &'a str,
    names: &'a BTreeMap<&'static str, Py>,
    scopes: Vec<Scope>,
    out: String,
    steps: u32,
    depth: u32,
}

impl<'a> Evaluation<'a> {
    pub(super) fn new(source: &'a str, names: &'a BTreeMap<&'static str, Py>) -> Self {
        Self {
            source,
            names,
            scopes: vec![Scope::new()],
            out: String::new(),
            steps: 0,
            depth: 0,
        }
    }

    /// Renders the template.
    pub(super) fn render(mut self, template: &Stmt<'_>) -> Outcome<String> {
        match template {
            Stmt::Template(template) => self.all(&template.children)?,
            other => self.statement(other)?,
        }
        Ok(self.out)
    }

    fn step(&mut self) -> Outcome<()> {
        self.steps += 1;
        if self.steps > STEPS || self.out.len() > LONGEST {
            return Err("it takes too long".to_owned());
        }
        Ok(())
    }

    fn all(&mut self, statements: &[Stmt<'_>]) -> Outcome<()> {
        statements
            .iter()
            .try_for_each(|statement| self.statement(statement))
    }

    fn statement(&mut self, statement: &Stmt<'_>) -> Outcome<()> {
        self.step()?;
        match statement {
            Stmt::EmitRaw(raw) => self.out.push_str(raw.raw),
            Stmt::EmitExpr(emit) => {
                let text = self.value(&emit.expr)?.str()?;
                self.out.push_str(&text);
            }
            Stmt::IfCond(condition) => {
                let body = if self.value(&condition.expr)?.truth()? {
                    &condition.true_body
                } else {
                    &condition.false_body
                };
                self.all(body)?;
            }
            Stmt::ForLoop(each) => self.for_each(each)?,
            Stmt::Set(set) => {
                let value = self.value(&set.expr)?;
                let Expr::Var(name) = &set.target else {
                    return Err("it sets more than one name".to_owned());
                };
                self.set(name.id, value)?;
            }
            _ => return Err("a statement is not known here".to_owned()),
        }
        Ok(())
    }

    fn set(&mut self, name: &str, value: Py) -> Outcome<()> {
        let scope = self.scopes.last_mut().ok_or("there is no scope")?;
        scope.insert(name.to_owned(), value);
        Ok(())
    }

    fn for_each(&mut self, each: &Spanned<ForLoop<'_>>) -> Outcome<()> {
        if each.recursive || each.filter_expr.is_some() {
            return Err("a loop of this kind is not known here".to_owned());
        }
        let items = self.iterated(&each.iter)?;
        if items.is_empty() {
            return self.all(&each.else_body);
        }
        let length = items.len() as i64;
        for (index, item) in (0..).zip(items) {
            self.step()?;
            let about = [
                ("index", Py::Int(index + 1)),
                ("index0", Py::Int(index)),
                ("revindex", Py::Int(length - index)),
                ("revindex0", Py::Int(length - index - 1)),
                ("first", Py::Bool(index == 0)),
                ("last", Py::Bool(index + 1 == length)),
                ("length", Py::Int(length)),
            ];
            self.scopes.push(Scope::new());
            self.set("loop", Py::Object(Rc::new(about.into())))?;
            self.assign(&each.target, item)?;
            let done = self.all(&each.body);
            self.scopes.pop();
            done?;
        }
        Ok(())
    }

    /// What a loop goes over. Views of dicts are known here alone: elsewhere they print as nothing else does.
    fn iterated(&mut self, iter: &Expr<'_>) -> Outcome<Vec<Py>> {
        if let Expr::Call(call) = iter
            && let Expr::GetAttr(method) = &call.expr
            && call.args.is_empty()
            && matches!(method.name, "items" | "keys" | "values")
            && let Py::Dict(fields) = self.value(&method.expr)?
        {
            let item = |(key, value): &(Rc<str>, Py)| match method.name {
                "keys" => Py::Str(Rc::clone(key)),
                "values" => value.clone(),
                _ => Py::Tuple(Rc::new(vec![Py::Str(Rc::clone(key)), value.clone()])),
            };
            return Ok(fields.iter().map(item).collect());
        }
        if let Expr::Call(call) = iter
            && matches!(&call.expr, Expr::Var(name) if name.id == "range" && !self.is_set("range"))
        {
            return self.range(call);
        }
        self.value(iter)?.items()
    }

    fn range(&mut self, call: &Call<'_>) -> Outcome<Vec<Py>> {
        let arguments = self.arguments(&call.args)?;
        let (mut numbers, mut given) = (Vec::new(), arguments);
        while let Some(number) = given.whole("")? {
            numbers.push(number);
        }
        given.end()?;
        let (from, to, step) = match numbers[..] {
            [to] => (0, to, 1),
            [from, to] => (from, to, 1),
            [from, to, step] if step != 0 => (from, to, step),
            _ => return Err("it is no range".to_owned()),
        };
        let mut items = Vec::new();
        let mut at = from;
        while (step > 0 && at < to) || (step < 0 && at > to) {
            self.step()?;
            items.push(Py::Int(at));
            at = at.checked_add(step).ok_or("a range is too large")?;
        }
        Ok(items)
    }

    fn assign(&mut self, target: &Expr<'_>, item: Py) -> Outcome<()> {
        let targets = match target {
            Expr::Var(name) => return self.set(name.id, item),
            Expr::List(list) => &list.items,
            Expr::Tuple(tuple) => &tuple.items,
            _ => return Err("what a loop assigns to is not known here".to_owned()),
        };
        let items = item.items()?;
        if items.len() != targets.len() {
            return Err("a loop assigns another number of values".to_owned());
        }
        targets
            .iter()
            .zip(items)
            .try_for_each(|(target, item)| self.assign(target, item))
    }

    fn is_set(&self, name: &str) -> bool {
        self.scopes.iter().any(|scope| scope.contains_key(name))
    }

    fn variable(&self, name: &str) -> Outcome<Py> {
        let set = self.scopes.iter().rev().find_map(|scope| scope.get(name));
        let found = set.or_else(|| self.names.get(name)).cloned();
        found.ok_or_else(|| format!("name {name} is not known here"))
    }

    /// The value of an expression.
    fn value(&mut self, expr: &Expr<'_>) -> Outcome<Py> {
        self.step()?;
        self.depth += 1;
        if self.depth > DEEPEST {
            return Err("it is nested too deeply".to_owned());
        }
        let value = self.value_of(expr);
        self.depth -= 1;
        value
    }

    fn value_of(&mut self, expr: &Expr<'_>) -> Outcome<Py> {
        match expr {
            Expr::Var(name) => self.variable(name.id),
            Expr::Const(constant) => self.constant(constant),
            Expr::List(list) => self.values(&list.items).map(Py::list),
            Expr::Tuple(tuple) => self.values(&tuple.items).map(|items| Py::Tuple(Rc::new(items))),
            Expr::Map(map) => self.dict(&map.keys, &map.values),
            Expr::GetAttr(get) => methods::attribute(&self.value(&get.expr)?, get.name),
            Expr::GetItem(get) => {
                let value = self.value(&get.expr)?;
                methods::item(&value, &self.value(&get.subscript_expr)?)
            }
            Expr::Slice(part) => {
                let value = self.value(&part.expr)?;
                let mut bound = |at: &Option<Expr<'_>>| match at {
                    None => Ok(None),
                    Some(at) => match self.value(at)? {
                        Py::None => Ok(None),
                        at => at.whole().map(Some),
                    },
                };
                let (start, stop, step) = (bound(&part.start)?, bound(&part.stop)?, bound(&part.step)?);
                slice(&value, start, stop, step)
            }
            Expr::UnaryOp(unary) => {
                let value = self.value(&unary.expr)?;
                match (&unary.op, value) {
                    (UnaryOpKind::Not, value) => value.truth().map(|truth| Py::Bool(!truth)),
                    (UnaryOpKind::Neg, Py::Float(number)) => Ok(Py::Float(-number)),
                    (UnaryOpKind::Neg, value) => {
                        let number = value.whole()?.checked_neg();
                        number
                            .map(Py::Int)
                            .ok_or_else(|| "a number is too large".to_owned())
                    }
                }
            }
            Expr::BinOp(operation) => {
                let left = self.value(&operation.left)?;
                match operation.op {
                    BinOpKind::ScAnd if !left.truth()? => Ok(left),
                    BinOpKind::ScOr if left.truth()? => Ok(left),
                    BinOpKind::ScAnd | BinOpKind::ScOr => self.value(&operation.right),
                    op => binary(op, &left, &self.value(&operation.right)?),
                }
            }
            Expr::Compare(chain) => {
                let mut left = self.value(&chain.expr)?;
                for next in &chain.ops {
                    let right = self.value(&next.expr)?;
                    if !compare(next.op, &left, &right)? {
                        return Ok(Py::Bool(false));
                    }
                    left = right;
                }
                Ok(Py::Bool(true))
            }
            Expr::IfExpr(choice) => {
                if self.value(&choice.test_expr)?.truth()? {
                    self.value(&choice.true_expr)
                } else {
                    let other = choice.false_expr.as_ref();
                    other.map_or(Ok(Py::Undefined), |other| self.value(other))
                }
            }
            Expr::Filter(filter) => {
                let value = self.value(filter.expr.as_ref().ok_or("a filter has no value")?)?;
                let arguments = self.arguments(&filter.args)?;
                let value = if matches!(value, Py::Undefined) && !matches!(filter.name, "default" | "d") {
                    return Err("a value is undefined".to_owned());
                } else {
                    value
                };
                filters::filter(filter.name, &value, arguments)
            }
            Expr::Test(test) => {
                let value = self.value(&test.expr)?;
                let arguments = self.arguments(&test.args)?;
                filters::test(test.name, &value, arguments).map(Py::Bool)
            }
            Expr::Call(call) => self.call(call),
        }
    }

    fn values(&mut self, exprs: &[Expr<'_>]) -> Outcome<Vec<Py>> {
        exprs.iter().map(|expr| self.value(expr)).collect()
    }

    fn dict(&mut self, keys: &[Expr<'_>], values: &[Expr<'_>]) -> Outcome<Py> {
        let mut fields: Vec<(Rc<str>, Py)> = Vec::new();
        for (key, value) in keys.iter().zip(values) {
            let (Py::Str(key), value) = (self.value(key)?, self.value(value)?) else {
                return Err("a key is no text".to_owned());
            };
            match fields.iter_mut().find(|(name, _)| *name == key) {
                Some(field) => field.1 = value,
                None => fields.push((key, value)),
            }
        }
        Ok(Py::Dict(Rc::new(fields)))
    }

    fn call(&mut self, call: &Spanned<Call<'_>>) -> Outcome<Py> {
        let Expr::GetAttr(method) = &call.expr else {
            return Err("a call is not known here".to_owned());
        };
        let value = self.value(&method.expr)?;
        let arguments = self.arguments(&call.args)?;
        methods::call(&value, method.name, arguments)
    }

    fn arguments(&mut self, given: &[CallArg<'_>]) -> Outcome<Arguments> {
        let (mut positional, mut named) = (Vec::new(), Vec::new());
        for argument in given {
            let value = match argument {
                CallArg::Pos(expr) => {
                    positional.push(self.value(expr)?);
                    positional.last()
                }
                CallArg::Kwarg(name, expr) => {
                    named.push(((*name).to_owned(), self.value(expr)?));
                    named.last().map(|(_, value)| value)
                }
                CallArg::PosSplat(_) | CallArg::KwargSplat(_) => {
                    return Err("arguments are spread".to_owned());
                }
            };
            if matches!(value, Some(Py::Undefined)) {
                return Err("an argument is undefined".to_owned());
            }
        }
        Ok(Arguments::new(positional, named))
    }

    /// A literal, as long as both sides read it alike.
    fn constant(&self, constant: &Spanned<Const>) -> Outcome<Py> {
        let value = &constant.value;
        let declined = |_| -> Declined { "a literal is not known here".to_owned() };
        if let Some(text) = value.as_str() {
            let span = constant.span();
            let written = self
                .source
                .get(span.start_offset as usize..span.end_offset as usize);
            return if is_plain_literal(written.ok_or("a literal is nowhere")?) {
                Ok(Py::text(text))
            } else {
                Err("a literal has escapes".to_owned())
            };
        }
        match value.kind() {
            minijinja::value::ValueKind::None => Ok(Py::None),
            minijinja::value::ValueKind::Bool => {
                bool::try_from(value.clone()).map(Py::Bool).map_err(declined)
            }
            minijinja::value::ValueKind::Number if value.is_integer() => {
                i64::try_from(value.clone()).map(Py::Int).map_err(declined)
            }
            minijinja::value::ValueKind::Number => {
                f64::try_from(value.clone()).map(Py::Float).map_err(declined)
            }
            _ => Err("a literal is not known here".to_owned()),
        }
    }
}

/// Returns `true` if a literal has no escape but those that Python and the parser read alike.
fn is_plain_literal(written: &str) -> bool {
    let mut chars = written.chars();
    while let Some(c) = chars.next() {
        if c == '\\' && !matches!(chars.next(), Some('\\' | '\'' | '"' | 'n' | 'r' | 't')) {
            return false;
        }
    }
    true
}
