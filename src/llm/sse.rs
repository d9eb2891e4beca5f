//! Parses server-sent events. Pure.

/// Maximum size of one event, in bytes. The largest that model servers send is a whole answer in one chunk.
const EVENT_BYTES_MAX: usize = 16 * 1024 * 1024;

/// One event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// The data lines, joined by line feeds.
    pub data: String,
    /// Whether the event is named `error`, or is a line `error: …`, which some servers send in place of an event.
    pub is_error: bool,
    /// Whether the event is named as a keep-alive, such as `ping`.
    pub is_keep_alive: bool,
}

/// Splits a byte stream into its events.
#[derive(Debug, Default)]
pub struct Parser {
    /// Bytes of the current, incomplete line.
    line: Vec<u8>,
    /// The data lines of the current event, joined by line feeds.
    data: Vec<u8>,
    /// Whether the current event has a data line, even an empty one.
    has_data: bool,
    /// The name of the current event, in lower case.
    name: String,
    /// Whether the last byte was a carriage return; a line feed may follow.
    after_return: bool,
}

/// An event is larger than the maximum.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an event is larger than {EVENT_BYTES_MAX} bytes")]
pub struct TooLarge;

impl Parser {
    /// Parses the next bytes and returns the events that they complete.
    ///
    /// Replaces invalid UTF-8. Ignores comments, ids, other names than `error`, and events without data.
    ///
    /// # Errors
    /// [`TooLarge`]; the stream cannot be parsed any further.
    pub fn push(&mut self, bytes: &[u8]) -> Result<Vec<Event>, TooLarge> {
        let mut events = Vec::new();
        let mut rest = bytes;
        while let Some(end) = rest.iter().position(|byte| matches!(byte, b'\n' | b'\r')) {
            let (part, ending) = (&rest[..end], rest[end]);
            let is_second_half = self.after_return && ending == b'\n' && end == 0;
            self.after_return = ending == b'\r';
            rest = &rest[end + 1..];
            if is_second_half {
                continue;
            }
            self.line.extend_from_slice(part);
            events.extend(self.end_line());
        }
        if !rest.is_empty() {
            self.after_return = false;
            self.line.extend_from_slice(rest);
        }
        if self.line.len() + self.data.len() > EVENT_BYTES_MAX { Err(TooLarge) } else { Ok(events) }
    }

    /// Returns the last event if the stream ended without its empty line, as some servers do.
    pub fn end(&mut self) -> Option<Event> {
        self.end_line().or_else(|| self.end_event())
    }

    fn end_line(&mut self) -> Option<Event> {
        let line = std::mem::take(&mut self.line);
        if line.is_empty() {
            return self.end_event();
        }
        if let Some(data) = field(&line, b"data:") {
            if !self.has_data && data.trim_ascii() == b"[DONE]" {
                // Some servers omit the empty line after the end of the stream.
                self.name.clear();
                return Some(Event { data: "[DONE]".to_owned(), is_error: false, is_keep_alive: false });
            }
            if self.has_data {
                self.data.push(b'\n');
            }
            self.data.extend_from_slice(data);
            self.has_data = true;
        } else if let Some(name) = field(&line, b"event:") {
            self.name = String::from_utf8_lossy(name).trim().to_ascii_lowercase();
        } else if let Some(error) = field(&line, b"error:") {
            return Some(Event {
                data: String::from_utf8_lossy(error).into_owned(),
                is_error: true,
                is_keep_alive: false,
            });
        } else if line.starts_with(b"{") {
            // JSON without the form of an event.
            return Some(Event {
                data: String::from_utf8_lossy(&line).into_owned(),
                is_error: false,
                is_keep_alive: false,
            });
        }
        None
    }

    fn end_event(&mut self) -> Option<Event> {
        let data = std::mem::take(&mut self.data);
        let name = std::mem::take(&mut self.name);
        let has_data = std::mem::take(&mut self.has_data) && !data.trim_ascii().is_empty();
        let is_error = name == "error";
        let is_keep_alive = ["ping", "keep-alive", "keepalive", "heartbeat"].contains(&name.as_str());
        (has_data || is_error).then(|| Event {
            data: String::from_utf8_lossy(&data).into_owned(),
            is_error,
            is_keep_alive,
        })
    }
}

/// Returns the value of a line with this field name, in any case.
fn field<'a>(line: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    let (start, value) = line.split_at_checked(name.len())?;
    if !start.eq_ignore_ascii_case(name) {
        return None;
    }
    Some(value.strip_prefix(b" ").unwrap_or(value))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(pieces: &[&[u8]]) -> Vec<Event> {
        let mut parser = Parser::default();
        let mut events = Vec::new();
        for piece in pieces {
            events.extend(parser.push(piece).unwrap());
        }
        events.extend(parser.end());
        events
    }

    fn data(stream: &[u8]) -> Vec<String> {
        parse(&[stream]).into_iter().map(|event| event.data).collect()
    }

    #[test]
    fn comments_names_ids_and_empty_events_are_ignored_and_data_lines_are_joined() {
        let stream = b": hello\nevent: x\nid: 1\ndata: a\ndata:b\n\ndata:\n\n\ndata: \n\n: bye\n";

        assert_eq!(data(stream), ["a\nb"]);
    }

    #[test]
    fn an_error_is_recognized_by_its_name_or_its_field() {
        let events = parse(&[b"data: a\n\nevent: error\ndata: b\n\nerror: c\ndata: d\n\n"]);

        let events: Vec<(&str, bool)> = events.iter().map(|event| (event.data.as_str(), event.is_error)).collect();
        assert_eq!(events, [("a", false), ("b", true), ("c", true), ("d", false)]);
    }

    #[test]
    fn an_event_without_its_empty_line_is_returned_at_the_end() {
        assert_eq!(data(b"data: a\n\ndata: [DONE]"), ["a", "[DONE]"]);
    }

    proptest! {
        #[test]
        fn the_events_are_the_same_wherever_the_bytes_are_split(
            lines in prop::collection::vec("(data: ?)?[a-zé:]{0,5}", 0..20),
            ending in prop::sample::select(vec!["\n", "\r\n", "\r"]),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..5),
        ) {
            let stream = lines.join(ending);
            let whole = parse(&[stream.as_bytes()]);

            let mut offsets: Vec<usize> = cuts.iter().map(|cut| cut.index(stream.len() + 1)).collect();
            offsets.extend([0, stream.len()]);
            offsets.sort_unstable();
            let pieces: Vec<&[u8]> = offsets.windows(2).map(|pair| &stream.as_bytes()[pair[0]..pair[1]]).collect();

            prop_assert_eq!(parse(&pieces), whole);
        }
    }
}
