//! Server-sent events, as they are read.

/// One event.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Event {
    /// `message` when nothing is said.
    pub kind: Option<String>,
    /// Its data, lines joined.
    pub data: Vec<u8>,
    /// Its id, to go on from.
    pub id: Option<String>,
    /// How long to wait before coming back, in milliseconds.
    pub retry_ms: Option<u64>,
}

/// Cuts a stream into events, holding at most one of them.
pub struct Events {
    bytes_max: usize,
    buffer: Vec<u8>,
    /// How far the buffer was looked through.
    searched: usize,
    event: Event,
}

impl Events {
    /// Events of at most so many bytes.
    pub fn new(bytes_max: usize) -> Self {
        Events { bytes_max, buffer: vec![], searched: 0, event: Event::default() }
    }

    /// The events that are whole. An error when one is too large.
    pub fn push(&mut self, chunk: &[u8]) -> Result<Vec<Event>, String> {
        self.buffer.extend_from_slice(chunk);
        let mut whole = vec![];
        let mut from = 0;
        let mut search = self.searched;
        while let Some(at) = self.buffer[search..].iter().position(|b| *b == b'\n') {
            let line = &self.buffer[from..search + at];
            from = search + at + 1;
            search = from;
            let line = line.strip_suffix(b"\r").unwrap_or(line);
            if line.is_empty() {
                if self.event != Event::default() {
                    whole.push(std::mem::take(&mut self.event));
                }
                continue;
            }
            self.event.take(line);
        }
        self.buffer.drain(..from);
        self.searched = self.buffer.len();
        if self.buffer.len() + self.event.data.len() > self.bytes_max {
            return Err(format!("it has more than {} bytes", self.bytes_max));
        }
        Ok(whole)
    }
}

impl Event {
    fn take(&mut self, line: &[u8]) {
        let (field, value) = match line.iter().position(|b| *b == b':') {
            Some(at) => (&line[..at], line[at + 1..].strip_prefix(b" ").unwrap_or(&line[at + 1..])),
            None => (line, &[][..]),
        };
        let text = || String::from_utf8_lossy(value).into_owned();
        match field {
            b"data" => {
                if !self.data.is_empty() {
                    self.data.push(b'\n');
                }
                self.data.extend_from_slice(value);
            }
            b"event" => self.kind = Some(text()),
            b"id" if value.len() <= 1_024 => self.id = Some(text()),
            b"retry" => self.retry_ms = text().parse().ok(),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data(events: Vec<Event>) -> Vec<Vec<u8>> {
        events.into_iter().map(|event| event.data).collect()
    }

    #[test]
    fn events_are_found_across_chunks() {
        let mut events = Events::new(100);
        assert!(events.push(b"event: message\r\nda").unwrap().is_empty());
        let found = events.push(b"ta: {\"a\":\r\ndata: 1}\r\n\r\n: comment\n\ndata:x\n\nda").unwrap();
        assert_eq!(data(found), [b"{\"a\":\n1}".to_vec(), b"x".to_vec()]);
        let found = events.push(b"ta: rest\nid: 7\nretry: 250\n\n").unwrap();
        assert_eq!(found, [Event { kind: None, data: b"rest".to_vec(), id: Some("7".into()), retry_ms: Some(250) }]);
    }

    #[test]
    fn one_event_is_bounded_and_a_stream_is_not() {
        let mut events = Events::new(100);
        for _ in 0..1_000 {
            assert_eq!(events.push(b"data: 0123456789\n\n").unwrap().len(), 1);
        }
        assert!(events.push(&[b'x'; 101]).is_err());
        assert!(Events::new(100).push(&b"data: 0123456789\n".repeat(11)).is_err());
    }
}
