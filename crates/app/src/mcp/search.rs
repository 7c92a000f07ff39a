//! Finds tools by words, so that a model need not hold the schemas of all of them: BM25 over names, descriptions and arguments.
//! Pure.

use super::view::OfferedTool;
use serde_json::Value;
use std::collections::BTreeMap;

/// How often a word of the name counts, one of the description being 1.
const NAME_WEIGHT: f64 = 3.0;
/// The same for names of arguments.
const ARGUMENT_WEIGHT: f64 = 0.7;
const K1: f64 = 1.2;
const B: f64 = 0.6;
/// Words of a query that are looked at.
const QUERY_WORDS_MAX: usize = 32;
/// What a word counts that only begins like one of the query.
const PREFIX_WEIGHT: f64 = 0.5;
const PREFIX_CHARS_MIN: usize = 4;

/// The words of the tools behind one door.
#[derive(Default)]
pub(crate) struct ToolIndex {
    /// By word: which tools, and how much of it they have.
    by_word: BTreeMap<String, BTreeMap<usize, f64>>,
    lengths: Vec<f64>,
}

impl ToolIndex {
    /// Of the tools of a view, in their order.
    pub fn of(tools: &[OfferedTool]) -> Self {
        let mut index = ToolIndex::default();
        for tool in tools {
            let manifest = &tool.tool.state.manifest;
            let schema = manifest.input_schema.value();
            let arguments: Vec<&str> =
                schema["properties"].as_object().into_iter().flatten().map(|(name, _)| name.as_str()).collect();
            index.put(&[(&tool.name, NAME_WEIGHT), (&manifest.description, 1.0), (&arguments.join(" "), ARGUMENT_WEIGHT)]);
        }
        index
    }

    fn put(&mut self, texts: &[(&str, f64)]) {
        let at = self.lengths.len();
        let mut length = 0.0;
        for (text, weight) in texts {
            for word in stems(text) {
                *self.by_word.entry(word).or_default().entry(at).or_default() += weight;
                length += weight;
            }
        }
        self.lengths.push(length);
    }

    /// The places of tools that have any of the words, best first, with their scores.
    pub fn find(&self, query: &str) -> Vec<(usize, f64)> {
        let mean = self.lengths.iter().sum::<f64>() / self.lengths.len().max(1) as f64;
        let mut scores: BTreeMap<usize, f64> = BTreeMap::new();
        let mut wanted = stems(query);
        wanted.sort();
        wanted.dedup();
        for word in wanted.iter().take(QUERY_WORDS_MAX) {
            for (known, share) in self.like(word) {
                let having = &self.by_word[known];
                let (all, with) = (self.lengths.len() as f64, having.len() as f64);
                let rarity = (1.0 + (all - with + 0.5) / (with + 0.5)).ln();
                for (at, count) in having {
                    let fill = K1 * (1.0 - B + B * self.lengths[*at] / mean);
                    *scores.entry(*at).or_default() += share * rarity * count * (K1 + 1.0) / (count + fill);
                }
            }
        }
        let mut found: Vec<(usize, f64)> = scores.into_iter().collect();
        found.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        found
    }

    /// A word, or those that begin with it where there is none.
    fn like<'a>(&'a self, word: &'a str) -> Vec<(&'a String, f64)> {
        if let Some((known, _)) = self.by_word.get_key_value(word) {
            return vec![(known, 1.0)];
        }
        if word.chars().count() < PREFIX_CHARS_MIN {
            return vec![];
        }
        let from = self.by_word.range(word.to_owned()..).take_while(|(known, _)| known.starts_with(word));
        from.map(|(known, _)| (known, PREFIX_WEIGHT)).collect()
    }
}

/// Words without their endings. `camelCase` and `snake_case` are two words.
fn stems(text: &str) -> Vec<String> {
    let mut words = vec![];
    let mut word = String::new();
    let mut was_lower = false;
    for c in text.chars() {
        if !c.is_alphanumeric() || (c.is_uppercase() && was_lower) {
            words.push(std::mem::take(&mut word));
        }
        word.extend(c.is_alphanumeric().then(|| c.to_lowercase()).into_iter().flatten());
        was_lower = c.is_lowercase() || c.is_numeric();
    }
    words.push(word);
    words.into_iter().filter(|word| word.chars().count() > 1).map(|word| stem(&word)).collect()
}

/// A word without the commonest endings of English.
fn stem(word: &str) -> String {
    const ENDINGS: [(&str, &str); 8] =
        [("ations", "at"), ("ation", "at"), ("ies", "y"), ("ing", ""), ("ers", ""), ("ed", ""), ("es", ""), ("s", "")];
    let kept = ENDINGS.iter().find_map(|(ending, instead)| {
        let rest = word.strip_suffix(ending)?;
        (rest.chars().count() >= 3 && !rest.ends_with('s')).then(|| format!("{rest}{instead}"))
    });
    let mut kept = kept.unwrap_or_else(|| word.to_owned());
    let chars: Vec<char> = kept.chars().rev().take(2).collect();
    // `committed` is of `commit`, `calling` of `call`.
    if kept.len() < word.len() && matches!(chars[..], [a, b] if a == b && !matches!(a, 'l' | 's' | 'z' | 'e' | 'o')) {
        kept.pop();
    }
    kept.strip_suffix('e').filter(|rest| rest.chars().count() >= 3).map_or(kept.clone(), str::to_owned)
}

/// What a model is told of a tool that was found.
pub fn found_json(entry: &str, score: f64) -> Value {
    let mut shown: Value = serde_json::from_str(entry).unwrap_or_default();
    shown["score"] = Value::from((score * 100.0).round() / 100.0);
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    fn index(tools: &[(&str, &str)]) -> ToolIndex {
        let mut index = ToolIndex::default();
        tools.iter().for_each(|(name, description)| index.put(&[(name, NAME_WEIGHT), (description, 1.0)]));
        index
    }

    #[test]
    fn given_words_in_other_forms_then_they_are_the_same() {
        assert_eq!(stems("createIssue"), stems("creating issues"));
        assert_eq!(stems("list_repositories"), stems("lists repository"));
        assert_eq!(stems("HTTPServer v2"), ["httpserver", "v2"]);
        assert_eq!(stems("class"), ["class"]);
    }

    #[test]
    fn given_a_question_then_the_tool_that_is_called_so_comes_first() {
        let index = index(&[
            ("git__log", "Shows the history of commits"),
            ("mail__send", "Sends a message to somebody, with a subject"),
            ("chat__post", "Sends a message to a channel"),
            ("fs__read", "Reads a file; never sends it anywhere"),
        ]);
        let best = |query: &str| index.find(query).first().map(|(at, _)| *at);
        assert_eq!(best("send an email message with a subject"), Some(1));
        assert_eq!(best("who committed what"), Some(0));
        assert_eq!(best("reading files"), Some(3));
        assert_eq!(best("chan"), Some(2), "what only begins so is found too");
        assert_eq!(best("zebra"), None);
        assert_eq!(index.find("").len(), 0);
    }
}
