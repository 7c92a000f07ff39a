//! Server-sent events: turns the bytes of a stream into messages.
//!
//! Owns the format (WHATWG HTML, section 9.2), as far as the interface uses it. Never connects.

use anyhow::bail;

/// Bytes of a line or a message; far above the largest event.
const MESSAGE_BYTES_MAX: usize = 16 * 1024 * 1024;

/// A message without a name: an event of the log.
#[derive(Debug, PartialEq, Eq)]
pub struct Message {
    /// The position, where one was given.
    pub id: Option<String>,
    /// The event as JSON.
    pub data: String,
}

/// What has been read of the message under way.
#[derive(Default)]
pub struct Parser {
    line: Vec<u8>,
    id: Option<String>,
    data: Vec<String>,
    data_bytes: usize,
    is_named: bool,
}

impl Parser {
    /// Takes the next bytes and gives the messages that they complete.
    pub fn feed(&mut self, bytes: &[u8]) -> anyhow::Result<Vec<Message>> {
        let mut messages = Vec::new();
        for part in bytes.split_inclusive(|b| *b == b'\n') {
            if self.line.len() + part.len() + self.data_bytes > MESSAGE_BYTES_MAX {
                bail!("the server sent an event of more than {MESSAGE_BYTES_MAX} bytes");
            }
            self.line.extend_from_slice(part);
            if part.ends_with(b"\n") {
                let line = std::mem::take(&mut self.line);
                messages.extend(self.take_line(&String::from_utf8_lossy(&line)));
            }
        }
        Ok(messages)
    }

    fn take_line(&mut self, line: &str) -> Option<Message> {
        let line = line.trim_end_matches(['\n', '\r']);
        if line.is_empty() {
            return self.finish();
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "data" => {
                self.data_bytes += value.len();
                self.data.push(value.to_owned());
            }
            "id" => self.id = Some(value.to_owned()),
            "event" => self.is_named = true,
            // Comments keep the connection alive; the pause before reconnecting is ours.
            _ => {}
        }
        None
    }

    fn finish(&mut self) -> Option<Message> {
        let done = std::mem::take(self);
        let is_event = !done.is_named && !done.data.is_empty();
        is_event.then(|| Message { id: done.id, data: done.data.join("\n") })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(id: Option<&str>, data: &str) -> Message {
        Message { id: id.map(str::to_owned), data: data.to_owned() }
    }

    #[test]
    fn messages_come_out_wherever_the_bytes_are_cut() {
        let unix = ": hello\n\nid: 7\ndata: {\"a\": \"ä\"}\n\nevent: caught-up\ndata: {}\n\n";
        let stream = format!("{unix}id:8\r\ndata:1\r\ndata: 2\r\n\r\n").into_bytes();
        let expected = vec![message(Some("7"), "{\"a\": \"ä\"}"), message(Some("8"), "1\n2")];
        for cut in 0..stream.len() {
            let mut parser = Parser::default();
            let mut found = parser.feed(&stream[..cut]).unwrap();
            found.extend(parser.feed(&stream[cut..]).unwrap());
            assert_eq!(found, expected, "cut at {cut}");
        }
    }

    #[test]
    fn half_a_message_is_none_and_an_endless_one_is_refused() {
        let mut parser = Parser::default();
        assert!(parser.feed(b"data: 1\n").unwrap().is_empty());
        let endless = vec![b'x'; MESSAGE_BYTES_MAX];
        assert!(parser.feed(&endless).is_err());
    }
}
