//! Separates the visible text of a turn from leading whitespace and thinking between tags. Pure.

/// Tags between which models write their thinking.
/// In lower case; other cases are recognized as well.
const TAGS: [(&str, &str); 7] = [
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),
    ("<reasoning>", "</reasoning>"),
    ("<seed:think>", "</seed:think>"),
    ("[think]", "[/think]"),
    ("◁think▷", "◁/think▷"),
];

/// What happens to thinking that a model writes as text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ThinkTags {
    /// It is removed if a turn begins with it.
    #[default]
    Strip,
    /// It stays in the message.
    Keep,
}

/// Filters the text of one turn.
///
/// Leading whitespace is buffered until the first visible character, so that a turn with only whitespace and calls has
/// no text.
#[derive(Debug)]
pub struct VisibleText {
    tags: ThinkTags,
    state: State,
    /// Buffered text: whitespace and the beginning of a tag; inside of tags, everything since the opening tag.
    held: String,
    /// The position in `held` from which the closing tag is searched.
    searched: usize,
    /// Whether thinking was removed.
    has_thought: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Start,
    /// Inside of tags, with this closing tag.
    Thinking(&'static str),
    Visible,
}

/// The parts of a piece of text.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Parts {
    /// Text for the message.
    pub visible: String,
    /// Thinking that is removed.
    pub hidden: String,
}

impl VisibleText {
    /// Creates the filter of a turn.
    #[must_use]
    pub fn new(tags: ThinkTags) -> Self {
        Self { tags, state: State::Start, held: String::new(), searched: 0, has_thought: false }
    }

    /// Whether there was visible text.
    #[must_use]
    pub fn has_text(&self) -> bool {
        self.state == State::Visible
    }

    /// Filters the next piece of text.
    pub fn push(&mut self, text: String) -> Parts {
        if self.state == State::Visible {
            return Parts { visible: text, hidden: String::new() };
        }
        let mut parts = Parts::default();
        if matches!(self.state, State::Thinking(_)) {
            parts.hidden.push_str(&text);
        }
        self.held.push_str(&text);
        loop {
            match self.state {
                State::Visible => return parts,
                State::Thinking(close) => {
                    let Some(start) = self.held[self.searched..].to_ascii_lowercase().find(close) else {
                        // The closing tag may be split across pieces.
                        self.searched = self.held.floor_char_boundary(self.held.len().saturating_sub(close.len()));
                        return parts;
                    };
                    self.held.drain(..self.searched + start + close.len());
                    self.has_thought = true;
                    self.state = State::Start;
                }
                State::Start => {
                    let rest = self.held.trim_start();
                    if rest.is_empty() {
                        return parts;
                    }
                    let tags = if self.tags == ThinkTags::Strip { &TAGS[..] } else { &[] };
                    let lower = rest.to_ascii_lowercase();
                    if let Some((open, close)) = tags.iter().find(|(open, _)| lower.starts_with(open)) {
                        parts.hidden.push_str(rest);
                        self.searched = self.held.len() - rest.len() + open.len();
                        self.state = State::Thinking(close);
                    } else if tags.iter().any(|(open, _)| open.starts_with(&lower)) {
                        return parts;
                    } else {
                        // Blanks between the thinking and the text belong to the thinking.
                        parts.visible.push_str(if self.has_thought { rest } else { &self.held });
                        self.held.clear();
                        self.state = State::Visible;
                    }
                }
            }
        }
    }

    /// Returns the buffered beginning of a tag that nothing continues: something other than text follows it, or the turn has
    /// ended. It is text. Returns an empty text if only whitespace or thinking is buffered.
    pub fn release(&mut self) -> String {
        let rest = self.held.trim_start();
        if self.state != State::Start || rest.is_empty() {
            return String::new();
        }
        let text = if self.has_thought { rest.to_owned() } else { self.held.clone() };
        self.held.clear();
        self.state = State::Visible;
        text
    }

    /// Returns the buffered thinking of a turn that has ended without visible text and without the closing tag: it may be the
    /// answer, unless the turn was cut off.
    pub fn end(&mut self, is_cut: bool) -> String {
        if is_cut || !matches!(self.state, State::Thinking(_)) {
            return String::new();
        }
        self.state = State::Visible;
        std::mem::take(&mut self.held)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The visible text of these pieces, and the removed one.
    fn filter(tags: ThinkTags, pieces: &[&str]) -> (String, String) {
        let mut filter = VisibleText::new(tags);
        let (mut visible, mut hidden) = (String::new(), String::new());
        for piece in pieces {
            let parts = filter.push((*piece).to_owned());
            visible.push_str(&parts.visible);
            hidden.push_str(&parts.hidden);
        }
        visible.push_str(&filter.release());
        visible.push_str(&filter.end(false));
        (visible, hidden)
    }

    fn visible(tags: ThinkTags, pieces: &[&str]) -> String {
        filter(tags, pieces).0
    }

    #[test]
    fn leading_whitespace_is_buffered_until_the_first_visible_character() {
        assert_eq!(visible(ThinkTags::Strip, &["\n\n", " ", "a", " \n"]), "\n\n a \n");
        assert_eq!(visible(ThinkTags::Strip, &["\n\n", " "]), "");
    }

    #[test]
    fn thinking_at_the_beginning_is_removed() {
        let pieces = ["\n<th", "ink>Hm", ", yes</thi", "nk>\n\n", "Hello <think>!"];

        assert_eq!(filter(ThinkTags::Strip, &pieces).0, "Hello <think>!");
        assert!(filter(ThinkTags::Strip, &pieces).1.contains("Hm, yes"));
        assert_eq!(visible(ThinkTags::Keep, &pieces), pieces.concat());
        assert_eq!(visible(ThinkTags::Strip, &["<think></think><thinking>x</thinking>", "a"]), "a");
        assert_eq!(visible(ThinkTags::Strip, &["<think>", "\n", "</think>", "\n\n", "Hi"]), "Hi");
        assert_eq!(visible(ThinkTags::Strip, &["<Think>", "é</THINK>\n\nHi"]), "Hi");
        assert_eq!(visible(ThinkTags::Strip, &["◁think▷é◁/think▷Hi"]), "Hi");
        assert_eq!(visible(ThinkTags::Strip, &["a<think>b</think>"]), "a<think>b</think>");
    }

    #[test]
    fn thinking_without_an_end_and_half_a_tag_are_text() {
        assert_eq!(visible(ThinkTags::Strip, &["<thi"]), "<thi");
        assert_eq!(visible(ThinkTags::Strip, &["<think>The answer ", "is 4."]), "<think>The answer is 4.");
        assert_eq!(visible(ThinkTags::Strip, &["<thin", "g>"]), "<thing>");
        // At the token limit, unfinished thinking is not an answer.
        let cut = [("[", "["), ("\n<thi", "\n<thi"), ("<think>Hm", ""), ("<think>Hm</think>\n[", "["), (" ", "")];
        for (text, rest) in cut {
            let mut filter = VisibleText::new(ThinkTags::Strip);
            assert_eq!(filter.push(text.to_owned()).visible, "");
            assert_eq!(filter.release() + &filter.end(true), rest, "{text}");
        }
    }

    proptest! {
        #[test]
        fn the_text_is_the_same_wherever_it_is_split(
            words in prop::collection::vec(prop::sample::select(vec![
                "<think>", "</think>", " ", "\n", "a", "é", "<thinking>", "</thinking>", "[THINK]", "[/THINK]", "<", "th", "◁",
            ]), 0..12),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..6),
        ) {
            let text = words.concat();
            let mut offsets: Vec<usize> =
                cuts.iter().map(|cut| text.floor_char_boundary(cut.index(text.len() + 1))).collect();
            offsets.extend([0, text.len()]);
            offsets.sort_unstable();
            let pieces: Vec<&str> = offsets.windows(2).map(|pair| &text[pair[0]..pair[1]]).collect();

            prop_assert_eq!(visible(ThinkTags::Strip, &pieces), visible(ThinkTags::Strip, &[&text]));
            prop_assert_eq!(visible(ThinkTags::Keep, &pieces), if text.trim().is_empty() { String::new() } else { text.clone() });
        }
    }
}
