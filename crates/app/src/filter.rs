//! Filters of events: an expression in CEL over what an event says.
//!
//! Owns what such an expression may be. It comes from outside, so it is bounded before it is parsed (length), while it is parsed
//! (nesting) and after (parts, functions, patterns), and it has no loops: an evaluation costs about as much as its parts times the
//! size of the event. Never knows who asks.

use crate::Answer;
use cel::common::ast::{CallExpr, Expr, IdedExpr, LiteralValue, operators};
use cel::common::types::CelBool;
use cel::extractors::This;
use cel::objects::{Key, Map};
use cel::parser::PrattParser;
use cel::{Context, Env, ExecutionError, Value};
use kernel::{Category, Kind, Recorded, Rejection};
use regex::{Regex, RegexBuilder};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, LazyLock};

/// Longest expression.
const TEXT_BYTES_MAX: usize = 2 * 1024;
/// Parentheses, brackets, braces and arguments within each other.
const NESTING_MAX: u16 = 24;
/// Question marks: the parser goes one level deeper for each condition behind another.
const QUESTIONS_MAX: usize = 64;
/// How deep operators lie within each other: `a + b + c` is two deep.
const DEPTH_MAX: usize = 64;
/// Parts that do something; names and literals count, too, but for those in lists.
const PARTS_MAX: usize = 256;
/// Additions, which may put long texts together.
const ADDITIONS_MAX: usize = 16;
/// Patterns.
const PATTERNS_MAX: usize = 4;
/// Size of a compiled pattern.
const PATTERN_BYTES_MAX: usize = 64 * 1024;
/// Longest text that a pattern is tried on.
const MATCHED_BYTES_MAX: usize = 16 * 1024;

/// What an expression may name.
const VARIABLES: [&str; 8] = ["type", "stream", "category", "position", "source", "actor", "time", "data"];
/// What an expression may call, beside operators and `has`.
const FUNCTIONS: [&str; 10] =
    ["size", "contains", "startsWith", "endsWith", "matches", "int", "uint", "double", "string", "bool"];
const OPERATORS: [&str; 17] = [
    operators::CONDITIONAL,
    operators::LOGICAL_AND,
    operators::LOGICAL_OR,
    operators::LOGICAL_NOT,
    operators::SUBSTRACT,
    operators::ADD,
    operators::MULTIPLY,
    operators::DIVIDE,
    operators::MODULO,
    operators::EQUALS,
    operators::NOT_EQUALS,
    operators::GREATER_EQUALS,
    operators::LESS_EQUALS,
    operators::GREATER,
    operators::LESS,
    operators::NEGATE,
    operators::INDEX,
];

/// The standard functions; patterns are ours, compiled once.
static STANDARD: LazyLock<Arc<Env>> = LazyLock::new(|| Arc::new(Env::stdlib()));

/// A compiled expression. It admits an event when it is true of it; what is not a boolean, or names a field that the event does
/// not have, is not true.
#[derive(Clone, Debug)]
pub struct Filter(Arc<Compiled>);

#[derive(Debug)]
struct Compiled {
    text: String,
    expression: IdedExpr,
    patterns: Arc<BTreeMap<String, Regex>>,
    variables: BTreeSet<&'static str>,
}

impl PartialEq for Filter {
    fn eq(&self, other: &Self) -> bool {
        self.text() == other.text()
    }
}

impl Filter {
    /// Compiles an expression, or says where it is wrong.
    pub fn compile(text: &str) -> Answer<Filter> {
        let fault = match text {
            _ if text.len() > TEXT_BYTES_MAX => Some(format!("a filter may have at most {TEXT_BYTES_MAX} bytes")),
            _ if text.trim().is_empty() => Some("a filter must say something".to_owned()),
            _ if text.matches('?').count() > QUESTIONS_MAX => Some(format!("at most {QUESTIONS_MAX} question marks are taken")),
            _ => None,
        };
        if let Some(reason) = fault {
            return Err(invalid(None, &reason));
        }
        let parser = PrattParser::new().max_recursion_depth(NESTING_MAX).error_recovery_limit(4).error_reporting_limit(4);
        let expression = parser.parse(text).map_err(|errors| of_parser(&errors))?;
        let (patterns, variables) = Check::of(&expression).map_err(|fault| invalid(fault.place(text), &fault.reason))?;
        Ok(Filter(Arc::new(Compiled { text: text.to_owned(), expression, patterns: Arc::new(patterns), variables })))
    }

    /// The expression as it was given.
    pub fn text(&self) -> &str {
        &self.0.text
    }

    /// Whether the expression is true of an event.
    pub fn admits(&self, event: &Recorded) -> bool {
        let mut context = Context::with_env(STANDARD.clone());
        let patterns = self.0.patterns.clone();
        let matches = move |This(text): This<Arc<String>>, pattern: Arc<String>| try_pattern(&patterns, &text, &pattern);
        if context.add_function("matches", matches).is_err() {
            return false;
        }
        for name in &self.0.variables {
            context.add_variable_from_value(*name, variable(event, name));
        }
        let answer = Value::resolve_val(&self.0.expression, &context);
        answer.is_ok_and(|value| value.downcast_ref::<CelBool>().is_some_and(|is_true| *is_true.inner()))
    }
}

fn try_pattern(patterns: &BTreeMap<String, Regex>, text: &str, pattern: &str) -> Result<bool, ExecutionError> {
    match patterns.get(pattern) {
        Some(pattern) if text.len() <= MATCHED_BYTES_MAX => Ok(pattern.is_match(text)),
        _ => Err(ExecutionError::function_error("matches", "the text is too long for a pattern")),
    }
}

/// What a name stands for.
fn variable(event: &Recorded, name: &str) -> Value {
    let h = &event.header;
    match name {
        "type" => h.kind.as_str().into(),
        "stream" => h.stream.as_str().into(),
        "category" => match h.category {
            Category::Domain => "domain".into(),
            Category::Integration => "integration".into(),
            Category::System => "system".into(),
        },
        "position" => i64::try_from(h.position).unwrap_or(i64::MAX).into(),
        "source" => h.source().into(),
        "actor" => map([("kind", h.actor.kind.as_str().into()), ("id", h.actor.id.as_str().into())]),
        "time" => h.occurred_at.to_string().into(),
        _ => {
            let parts = event.parts().and_then(Result::ok);
            parts.and_then(|parts| serde_json::from_str(parts.data.get()).ok()).map_or(Value::Null, of_json)
        }
    }
}

fn map<'a>(entries: impl IntoIterator<Item = (&'a str, Value)>) -> Value {
    let entries = entries.into_iter().map(|(name, value)| (Key::String(Arc::new(name.to_owned())), value));
    Value::Map(Map { map: Arc::new(entries.collect()) })
}

/// Whole numbers are integers, so that `data.n == 1` and `data.n % 2` mean what they say.
fn of_json(value: serde_json::Value) -> Value {
    match value {
        serde_json::Value::Null => Value::Null,
        serde_json::Value::Bool(bool) => Value::Bool(bool),
        serde_json::Value::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(int), _) => Value::Int(int),
            (None, Some(uint)) => Value::UInt(uint),
            (None, None) => Value::Float(number.as_f64().unwrap_or(f64::NAN)),
        },
        serde_json::Value::String(text) => Value::String(Arc::new(text)),
        serde_json::Value::Array(items) => Value::List(Arc::new(items.into_iter().map(of_json).collect())),
        serde_json::Value::Object(fields) => {
            let fields = fields.into_iter().map(|(name, value)| (Key::String(Arc::new(name)), of_json(value)));
            Value::Map(Map { map: Arc::new(fields.collect()) })
        }
    }
}

/// What is wrong with an expression that could be parsed.
struct Fault {
    reason: String,
    /// The words at which it may be wrong; the first that is found is it.
    words: Vec<String>,
}

impl Fault {
    fn new(reason: impl Into<String>) -> Self {
        Fault { reason: reason.into(), words: vec![] }
    }

    fn at(self, word: &str) -> Self {
        Fault { words: vec![word.to_owned()], ..self }
    }

    /// Line and column of the word, from 1.
    fn place(&self, text: &str) -> Option<(usize, usize)> {
        let offset = self.words.iter().filter_map(|word| text.find(word)).min()?;
        let before = text.get(..offset)?;
        let column = before.chars().rev().take_while(|c| *c != '\n').count() + 1;
        Some((before.matches('\n').count() + 1, column))
    }
}

/// Looks through an expression, without recursion.
#[derive(Default)]
struct Check {
    parts: usize,
    additions: usize,
    patterns: BTreeMap<String, Regex>,
    variables: BTreeSet<&'static str>,
}

impl Check {
    fn of(expression: &IdedExpr) -> Result<(BTreeMap<String, Regex>, BTreeSet<&'static str>), Fault> {
        let mut check = Check::default();
        let mut open = vec![(expression, 1)];
        while let Some((part, depth)) = open.pop() {
            check.part(part)?;
            if depth > DEPTH_MAX {
                return Err(Fault::new(format!("its operators lie more than {DEPTH_MAX} deep within each other")));
            }
            open.extend(children(part).into_iter().map(|child| (child, depth + 1)));
        }
        Ok((check.patterns, check.variables))
    }

    fn part(&mut self, part: &IdedExpr) -> Result<(), Fault> {
        self.parts += 1;
        if self.parts > PARTS_MAX {
            return Err(Fault::new(format!("a filter may have at most {PARTS_MAX} parts")));
        }
        match &part.expr {
            Expr::Ident(name) => self.name(name),
            Expr::Call(call) => self.call(call),
            Expr::Literal(_) | Expr::Select(_) => Ok(()),
            Expr::List(list) if list.optional_indices.is_empty() => Ok(()),
            Expr::Comprehension(_) => Err(loops()),
            Expr::List(_) | Expr::Map(_) | Expr::Struct(_) => {
                Err(Fault::new("of things in braces, a filter knows only what the event has").at("{"))
            }
            Expr::Unspecified => Err(Fault::new("a part is missing")),
        }
    }

    fn name(&mut self, name: &str) -> Result<(), Fault> {
        match VARIABLES.iter().find(|variable| **variable == name) {
            Some(variable) => self.variables.insert(variable),
            None => {
                let known = VARIABLES.join(", ");
                return Err(Fault::new(format!("'{name}' is not known; an event has {known}")).at(name));
            }
        };
        Ok(())
    }

    fn call(&mut self, call: &CallExpr) -> Result<(), Fault> {
        let name = call.func_name.as_str();
        self.additions += usize::from(name == operators::ADD);
        if self.additions > ADDITIONS_MAX {
            return Err(Fault::new(format!("a filter may add at most {ADDITIONS_MAX} times")).at("+"));
        }
        match name {
            "matches" => self.pattern(call),
            "all" | "exists" | "exists_one" | "map" | "filter" => Err(loops()),
            operators::IN => Ok(()),
            _ if OPERATORS.contains(&name) || FUNCTIONS.contains(&name) => Ok(()),
            _ => Err(Fault::new(format!("there is no function '{name}'; there are has, {}", FUNCTIONS.join(", "))).at(name)),
        }
    }

    /// A pattern is compiled here, once; so it must be written out.
    fn pattern(&mut self, call: &CallExpr) -> Result<(), Fault> {
        let Some(Expr::Literal(LiteralValue::String(pattern))) = call.args.last().map(|last| &last.expr) else {
            return Err(Fault::new("matches takes a pattern that is written out in the filter").at("matches"));
        };
        let compiled = RegexBuilder::new(pattern.inner()).size_limit(PATTERN_BYTES_MAX).dfa_size_limit(PATTERN_BYTES_MAX).build();
        let compiled = compiled.map_err(|error| Fault::new(format!("its pattern does not compile: {error}")).at("matches"))?;
        self.patterns.insert(pattern.inner().to_owned(), compiled);
        match self.patterns.len() > PATTERNS_MAX {
            true => Err(Fault::new(format!("a filter may have at most {PATTERNS_MAX} patterns")).at("matches")),
            false => Ok(()),
        }
    }
}

fn children(part: &IdedExpr) -> Vec<&IdedExpr> {
    match &part.expr {
        Expr::Call(call) => call.target.as_deref().into_iter().chain(&call.args).collect(),
        Expr::Select(select) => vec![&select.operand],
        // Plain values in a list cost little, so they are no parts.
        Expr::List(list) => list.elements.iter().filter(|e| !matches!(e.expr, Expr::Literal(_))).collect(),
        _ => vec![],
    }
}

fn loops() -> Fault {
    Fault {
        reason: "all, exists, exists_one, map and filter are not offered; ask for one value with 'value in list'".into(),
        words: ["all(", "exists(", "exists_one(", "map(", "filter("].map(str::to_owned).into(),
    }
}

fn of_parser(errors: &cel::ParseErrors) -> Rejection {
    let Some(error) = errors.errors.first() else { return invalid(None, "it cannot be parsed") };
    let place = match (usize::try_from(error.pos.0), usize::try_from(error.pos.1)) {
        (Ok(line @ 1..), Ok(column)) => Some((line, column.max(1))),
        _ => None,
    };
    invalid(place, error.msg.trim_start_matches("Syntax error: "))
}

fn invalid(place: Option<(usize, usize)>, reason: &str) -> Rejection {
    const REASON_CHARS_MAX: usize = 500;
    let reason: String = reason.chars().take(REASON_CHARS_MAX).collect();
    let (at, line, column) = match place {
        Some((line, column)) => (format!(" at line {line}, column {column}"), Some(line), Some(column)),
        None => (String::new(), None, None),
    };
    Rejection::new(
        Kind::Invalid,
        "FILTER_INVALID",
        format!("The filter does not compile{at}: {reason}."),
        "Write a boolean expression, such as data.priority > 5 && type.startsWith(\"tasks.\"); docs/reference/api.md says what it may use.",
    )
    .with("line", line)
    .with("column", column)
    .with("reason", reason)
}

#[cfg(test)]
#[path = "filter_tests.rs"]
mod tests;
