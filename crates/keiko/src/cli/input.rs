//! What people type: JSON, durations, ids, passwords.
//!
//! Owns reading standard input, files named by arguments, and the terminal's password prompt. Never talks to a server.

use super::error::hinted;
use super::print;
use anyhow::Context;
use serde_json::Value;
use std::io::{self, IsTerminal, Read};
use std::path::Path;

/// JSON given as it is, as `@FILE`, or as `-` for standard input.
pub fn json(text: &str) -> anyhow::Result<Value> {
    match text.strip_prefix('@') {
        Some(file) => json_file(Path::new(file)),
        None if text == "-" => json_file(Path::new("-")),
        None => parse(text, "the argument"),
    }
}

/// JSON in a file, or on standard input for `-`.
pub fn json_file(path: &Path) -> anyhow::Result<Value> {
    if path == Path::new("-") {
        let text = io::read_to_string(io::stdin()).context("cannot read standard input")?;
        return parse(&text, "standard input");
    }
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    parse(&text, &path.display().to_string())
}

fn parse(text: &str, origin: &str) -> anyhow::Result<Value> {
    serde_json::from_str(text).map_err(|error| {
        hinted(
            format!("What is in {origin} is not JSON: {error}."),
            r#"write objects as '{"path": "README.md"}' in single quotes, or give @FILE or - for standard input"#,
        )
    })
}

/// Milliseconds of a duration such as `500ms`, `30s`, `5m`, `2h`, `1d`.
pub fn duration_ms(text: &str) -> Result<u64, String> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let unit_ms = match unit {
        "ms" => Some(1),
        "s" => Some(1_000),
        "m" => Some(60_000),
        "h" => Some(3_600_000),
        "d" => Some(86_400_000),
        _ => None,
    };
    let parsed = unit_ms.and_then(|ms| number.parse::<u64>().ok()?.checked_mul(ms));
    parsed.ok_or_else(|| "a duration is a number with a unit: 500ms, 30s, 5m, 2h, 1d".to_owned())
}

/// An id or name as a part of a path. Dots alone would climb to another path.
pub fn handle(text: &str) -> Result<String, String> {
    match text.trim() {
        "" | "." | ".." => Err("an id or a name is needed".to_owned()),
        handle => Ok(handle.to_owned()),
    }
}

/// `NAME=NUMBER`.
pub fn weight(text: &str) -> Result<(String, f64), String> {
    let parsed = text.split_once('=').and_then(|(name, value)| Some((name.trim(), value.trim().parse::<f64>().ok()?)));
    match parsed {
        Some((name, value)) if !name.is_empty() && value.is_finite() => Ok((name.to_owned(), value)),
        _ => Err("a weight is written as name=number, for example load=0.5".to_owned()),
    }
}

/// A line typed on the terminal after a prompt.
pub fn line(prompt: &str, hint: &str) -> anyhow::Result<String> {
    if !io::stdin().is_terminal() {
        return Err(hinted(format!("Nobody is there to answer: {prompt}"), hint));
    }
    print::note(prompt);
    let mut text = String::new();
    io::stdin().read_line(&mut text).context("cannot read the terminal")?;
    Ok(text.trim().to_owned())
}

/// A password typed on the terminal, not shown.
pub fn password(prompt: &str, hint: &str) -> anyhow::Result<String> {
    if !io::stdin().is_terminal() {
        return Err(hinted("There is no terminal to ask for the password.", hint));
    }
    rpassword::prompt_password(format!("{prompt}: ")).context("cannot read the password")
}

/// A password on standard input, up to its end; one line end after it is dropped.
pub fn password_from_stdin() -> anyhow::Result<String> {
    let mut text = String::new();
    io::stdin().read_to_string(&mut text).context("cannot read the password from standard input")?;
    let text = text.strip_suffix('\n').unwrap_or(&text);
    Ok(text.strip_suffix('\r').unwrap_or(text).to_owned())
}

/// A new password: typed twice, or on standard input.
pub fn new_password(from_stdin: bool) -> anyhow::Result<String> {
    const HINT: &str = "give it on standard input, with --password-stdin";
    if from_stdin {
        return password_from_stdin();
    }
    let typed = password("New password", HINT)?;
    if typed != password("Again", HINT)? {
        return Err(hinted("The two passwords differ; nothing was changed.", "run the command again"));
    }
    Ok(typed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn durations_have_units() {
        assert_eq!(duration_ms("500ms"), Ok(500));
        assert_eq!(duration_ms("2h"), Ok(7_200_000));
        for bad in ["", "5", "s", "-1s", "1.5s", "1 s", "5ä", "99999999999999999999s", "18446744073709551615d"] {
            assert!(duration_ms(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_handle_stays_in_its_place() {
        assert_eq!(handle(" agent_1 "), Ok("agent_1".to_owned()));
        for bad in ["", " ", ".", ".."] {
            assert!(handle(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn weights_are_numbers_with_names() {
        assert_eq!(weight("load=0.5"), Ok(("load".to_owned(), 0.5)));
        for bad in ["load", "load=", "=1", "load=NaN", "load=inf", "load=x"] {
            assert!(weight(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn json_comes_from_the_argument_or_a_file() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("in.json");
        std::fs::write(&file, r#"{"a": 1}"#).unwrap();
        assert_eq!(json(&format!("@{}", file.display())).unwrap(), json!({"a": 1}));
        assert_eq!(json("[1]").unwrap(), json!([1]));
        assert!(json("{a: 1}").unwrap_err().to_string().contains("hint: "));
    }
}
