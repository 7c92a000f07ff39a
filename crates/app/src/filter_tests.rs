//! Filters: what they admit, what they refuse and where, and that no expression costs much.

#![expect(clippy::disallowed_methods, reason = "how long an evaluation takes is what is tested")]

use super::*;
use kernel::id::{EventId, TenantId};
use kernel::{ActorKind, ActorRef, EventHeader, Origin, Timestamp};
use proptest::prelude::*;
use serde_json::json;
use std::time::{Duration, Instant};

fn event(data: &serde_json::Value) -> Recorded {
    let header = EventHeader {
        id: EventId::from_bytes([1; 16]),
        kind: "tasks.task.submitted".into(),
        shape: 1,
        category: Category::Domain,
        tenant: TenantId::from_bytes([1; 16]),
        stream: "task_1".into(),
        version: 1,
        position: 42,
        occurred_at: Timestamp(1_767_225_600_000),
        recorded_at: Timestamp(1_767_225_600_000),
        actor: ActorRef { kind: ActorKind::Agent, id: "agent_7".into() },
        user: None,
        correlation: String::new(),
        causation: None,
        trace_parent: None,
    };
    let payload = kernel::event::payload(data, &Origin::default()).unwrap();
    Recorded { header, salt: Some([0; 16]), payload: Some(payload), payload_hash: [0; 32], leaf: [0; 32] }
}

fn admits(expression: &str) -> bool {
    let data = json!({ "priority": 7, "share": 0.5, "whole": 3.0, "big": u64::MAX, "tags": ["gpu", "eu"], "none": null,
                       "description": "Fix the lösung", "input": { "repo": "core", "with space": true } });
    Filter::compile(expression).unwrap().admits(&event(&data))
}

fn refused(expression: &str) -> Rejection {
    let rejection = Filter::compile(expression).unwrap_err();
    assert_eq!((rejection.kind, rejection.code), (Kind::Invalid, "FILTER_INVALID"));
    rejection
}

#[test]
fn given_an_event_when_an_expression_is_true_of_it_then_it_is_admitted() {
    for expression in [
        "true",
        "data.priority > 5",
        "data.priority == 7 && data.priority % 2 == 1 && data.priority + 1 == 8",
        "data.share < 1 && data.share * 2.0 == 1.0 && data.whole == 3",
        "data.big > 5",
        "data.none == null",
        "'gpu' in data.tags && !('us' in data.tags) && data.tags[1] == 'eu' && size(data.tags) == 2",
        "data.input.repo == 'core' && data.input['with space']",
        "has(data.input.repo) && !has(data.input.branch)",
        "!has(data.absent) || data.absent > 3",
        "data.absent > 3 || type == 'tasks.task.submitted'",
        "type.startsWith('tasks.') && type.endsWith('submitted') && type.contains('.task.')",
        "data.description.matches('^Fix .*ö') && matches(data.description, 'the')",
        "type in ['tasks.task.submitted', 'tasks.task.completed'] && stream == 'task_1' && category == 'domain'",
        "position == 42 && position < 43 && source == 'agent/agent_7'",
        "actor.kind == 'agent' && actor.id == \"agent_7\"",
        "time == '2026-01-01T00:00:00.000Z' && time < '2026-02'",
        "data.priority > 5 ? category == 'domain' : false",
        "int('7') == data.priority && string(data.priority) == '7' && double(data.priority) == 7.0",
        "// what matters\n data.priority > 5\n",
    ] {
        assert!(admits(expression), "{expression}");
    }
}

#[test]
fn given_an_expression_that_is_false_or_says_nothing_of_the_event_then_the_event_is_not_admitted() {
    for expression in [
        "false",
        "data.priority > 7",
        "data.absent",
        "data.absent == 1",
        "data.absent.deeper == 1",
        "has(data.absent.deeper)",
        "data.priority == 'seven'",
        "data.priority > 'seven'",
        "data.priority",
        "'true'",
        "data",
        "data.tags[9] == 'x'",
        "1 / 0 == 1",
        "9223372036854775807 + 1 > 0",
        "data.description.size > 3",
    ] {
        assert!(!admits(expression), "{expression}");
    }
    let mut erased = event(&json!({}));
    (erased.salt, erased.payload) = (None, None);
    assert!(!Filter::compile("data.priority > 5").unwrap().admits(&erased), "what was erased is not there");
    assert!(Filter::compile("position == 42").unwrap().admits(&erased));
}

#[test]
fn given_an_expression_that_does_not_compile_then_the_place_is_named() {
    for (expression, line, column, says) in [
        ("data.priority >", 1, 16, "expecting expression"),
        ("data.priority > 5 &&\n  == 3", 2, 3, "unexpected"),
        ("type == 'tasks", 1, 9, "unterminated string"),
        ("(position > 3", 1, 14, ")"),
        ("position > 3 and position < 5", 1, 14, "mismatched input 'and'"),
        ("true &&\n  dta.x == 1", 2, 3, "'dta' is not known"),
        ("type.toUpperCase() == 'X'", 1, 6, "no function 'toUpperCase'"),
        ("data.tags.exists(t, t == 'gpu')", 1, 11, "not offered"),
        ("data.text.matches('(')", 1, 11, "pattern does not compile"),
        ("data.text.matches(data.pattern)", 1, 11, "written out"),
        ("data.text.matches('(?=x)')", 1, 11, "look-around"),
        ("data == {'a': 1}", 1, 9, "braces"),
        ("99999999999999999999 > 1", 1, 1, "invalid int"),
    ] {
        let rejection = refused(expression);
        let place = (rejection.details["line"].as_u64(), rejection.details["column"].as_u64());
        assert_eq!(place, (Some(line), Some(column)), "{expression}: {rejection}");
        assert!(rejection.message.contains(says) && rejection.message.contains(&format!("line {line}")), "{rejection}");
    }
}

/// What somebody sends who wants the server to stop.
fn hostile() -> Vec<String> {
    let around = |open: &str, middle: &str, close: &str| {
        let times = (TEXT_BYTES_MAX - middle.len()) / (open.len() + close.len());
        format!("{}{middle}{}", open.repeat(times), close.repeat(times))
    };
    let mut found: Vec<String> = [
        ("(", "true", ")"),
        ("[", "1", "]"),
        ("!", "true", ""),
        ("-", "1", ""),
        ("", "data", ".a"),
        ("", "data", "[0]"),
        ("", "data", "[data"),
        ("", "1", "+1"),
        ("", "true", "&&true"),
        ("true?true:", "true", ""),
        ("true?", "true", ":true"),
        ("size(", "data", ")"),
        ("", "1", "==1"),
        ("{1:", "1", "}"),
        ("{", "", ""),
        ("", "type", ".size()"),
        ("(!", "true", ")"),
        ("(true?true:", "true", ")"),
        ("data.exists(x,", "x", ")"),
        ("[1,2,3].map(x,", "x", ")"),
        ("'", "", ""),
        ("\\", "", ""),
        ("/*", "", ""),
        ("//", "", ""),
        ("]&*%$#@!", "", ""),
        ("\u{1f600}", "", ""),
        ("\0", "", ""),
        ("", "data.t", "+data.t"),
        ("data.t==", "1", ""),
        ("data.t.contains(", "data.t", ")"),
        ("b'", "", ""),
        ("r\"", "", "\""),
        ("`", "", ""),
        ("a{", "", "}"),
        ("data.t in ", "data.t", ""),
        ("data.l==data.l||", "false", ""),
        ("data.t.matches('(a*)*b')||", "false", ""),
    ]
    .map(|(open, middle, close)| around(open, middle, close))
    .into();
    for pattern in ["(a{1000}){1000}", "(a|aa)+$", "((a{0,100}){0,100}){0,100}", "\\w{1000}", "[^x]*?(.*)*y", "\\p{L}{200}"] {
        found.push(format!("data.t.matches('{pattern}')"));
        found.push(format!("data.t.matches('{pattern}{}')", "a?".repeat(30)));
    }
    found.push("x".repeat(TEXT_BYTES_MAX + 1));
    found.push(format!("data.t.matches('{}')", "(".repeat(900)));
    found.push(
        "data.t.matches('.*.*.*.*.*.*.*.*=.*') || data.t.matches('(x+x+)+y') || data.t.matches('[a-z]*[a-z]*[a-z]*9')".into(),
    );
    found
}

/// An event as large as content that is stored within it can be.
fn large() -> Recorded {
    event(&json!({ "t": "a".repeat(MATCHED_BYTES_MAX), "l": vec![1; 4_000] }))
}

#[test]
fn given_hostile_expressions_then_neither_stack_nor_time_is_exhausted() {
    // Half of the stack that threads of the server have, in a build that needs the most of it.
    let run = || {
        let large = large();
        for expression in hostile() {
            let began = Instant::now();
            let filter = Filter::compile(&expression);
            let compiled = began.elapsed();
            assert!(compiled < Duration::from_millis(500), "{compiled:?} to compile {expression:.60}");
            let began = Instant::now();
            let is_admitted = filter.as_ref().is_ok_and(|filter| filter.admits(&large));
            let evaluated = began.elapsed();
            assert!(evaluated < Duration::from_millis(500), "{evaluated:?} to evaluate {expression:.60} ({is_admitted})");
        }
    };
    std::thread::Builder::new().stack_size(1 << 20).spawn(run).unwrap().join().unwrap();
}

#[test]
fn given_too_much_of_anything_then_it_is_refused() {
    for (expression, says) in [
        (String::new(), "must say something"),
        (" ".repeat(10), "must say something"),
        (format!("{}true", " ".repeat(TEXT_BYTES_MAX)), "bytes"),
        (format!("{}1{}", "[".repeat(40), "]".repeat(40)), "recursion limit"),
        (format!("true{}", "==true".repeat(70)), "deep"),
        (format!("size(type + {}type) > 1", "type + ".repeat(20)), "add at most"),
        (format!("true{}", "||true".repeat(150)), "parts"),
        ((0..5).map(|i| format!("type.matches('{i}')")).collect::<Vec<_>>().join("||"), "patterns"),
        (format!("'{}' == type", "?".repeat(65)), "question marks"),
    ] {
        let rejection = refused(&expression);
        assert!(rejection.message.contains(says), "{expression:.40}: {rejection}");
    }
    let listed = (0..300).map(|i| format!("'{i}'")).collect::<Vec<_>>().join(",");
    assert!(!admits(&format!("type in [{listed}]")), "a long list is fine");
}

#[test]
fn given_the_same_text_then_it_is_the_same_filter() {
    let filter = |text| Filter::compile(text).unwrap();
    assert_eq!(filter("true"), filter("true"));
    assert_ne!(filter("true"), filter("false"));
}

/// Pieces of which expressions are made, right and wrong ones.
fn pieces() -> impl Strategy<Value = String> {
    let pieces = [
        "data",
        ".",
        "x",
        "type",
        "(",
        ")",
        "[",
        "]",
        "{",
        "}",
        "'",
        "\"",
        "==",
        "!=",
        "<",
        ">=",
        "&&",
        "||",
        "!",
        "-",
        "+",
        "*",
        "/",
        "%",
        "?",
        ":",
        ",",
        "in",
        "has",
        "size",
        "matches",
        "all",
        "1",
        "0u",
        "1.5e3",
        "true",
        "null",
        " ",
        "\n",
        "\\",
        "r'",
        "b'",
        "'''",
        "//",
        "'a'",
        "data.n",
        "é",
        "😀",
        "0x",
        "99999999999999999999",
        "`",
        "@",
        "startsWith('t')",
        "data.matches('a+')",
    ];
    proptest::collection::vec(proptest::sample::select(pieces.to_vec()), 0..60).prop_map(|pieces| pieces.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn nothing_that_is_sent_panics(expression in prop_oneof![pieces(), ".{0,200}"]) {
        match Filter::compile(&expression) {
            Ok(filter) => { filter.admits(&event(&json!({ "n": 1, "x": { "x": [] } }))); }
            Err(rejection) => prop_assert!(rejection.code == "FILTER_INVALID" && rejection.message.len() < 2_500),
        }
    }
}
