//! Extracts the text of HTML: the title, then the visible text, with a line for each block. Pure.
//!
//! Works on tokens, without a tree, so that deep nesting and unclosed elements cost nothing.

use std::borrow::Cow;

use encoding_rs::Encoding;
use html5gum::emitters::default::DefaultEmitter;
use html5gum::{Token, Tokenizer};

use super::Rejected;
use super::layout::Layout;
use super::text;

/// Length of the beginning in which a document can declare its encoding, in bytes.
///
/// Source: HTML standard, "prescan a byte stream to determine its encoding".
const DECLARATION_BYTES: usize = 1024;

/// What an element does to the text around it.
enum Effect {
    /// Nothing: it is part of a line.
    Inline,
    /// It begins and ends a line.
    Line,
    /// It begins and ends a paragraph.
    Paragraph,
    /// It begins and ends a cell of a table.
    Cell,
    /// Its content is not text for readers.
    Hidden,
    /// Its text keeps its blanks.
    Preformatted,
}

fn effect(name: &[u8]) -> Effect {
    match name {
        b"script" | b"style" | b"noscript" | b"iframe" | b"noembed" | b"noframes" => Effect::Hidden,
        b"pre" | b"textarea" | b"listing" | b"xmp" | b"plaintext" => Effect::Preformatted,
        b"td" | b"th" => Effect::Cell,
        b"address" | b"body" | b"br" | b"button" | b"caption" | b"center" | b"dd" | b"dir" | b"div" | b"dt"
        | b"fieldset" | b"figcaption" | b"form" | b"head" | b"html" | b"legend" | b"li" | b"menu" | b"nav"
        | b"optgroup" | b"option" | b"select" | b"summary" | b"tbody" | b"tfoot" | b"thead" | b"tr" => Effect::Line,
        b"article" | b"aside" | b"blockquote" | b"details" | b"dialog" | b"dl" | b"figure" | b"footer" | b"h1"
        | b"h2" | b"h3" | b"h4" | b"h5" | b"h6" | b"header" | b"hgroup" | b"hr" | b"main" | b"ol" | b"p"
        | b"search" | b"section" | b"table" | b"title" | b"ul" => Effect::Paragraph,
        _ => Effect::Inline,
    }
}

/// Returns the text of an HTML file.
///
/// # Errors
/// If its encoding is not known, or its text is too long.
pub fn extract(bytes: Vec<u8>) -> Result<String, Rejected> {
    let html = decode(bytes)?;
    let mut walker = Walker::default();
    let mut emitter = DefaultEmitter::default();
    emitter.naively_switch_states(true);
    for token in Tokenizer::new_with_emitter(html.as_str(), emitter) {
        let Ok(token) = token;
        walker.token(&token)?;
    }
    Ok(walker.layout.finish())
}

#[derive(Default)]
struct Walker {
    layout: Layout,
    /// The element whose content is skipped.
    hidden: Option<Vec<u8>>,
    /// Number of open preformatted elements.
    preformatted: usize,
}

impl Walker {
    fn token(&mut self, token: &Token) -> Result<(), Rejected> {
        match token {
            Token::StartTag(tag) => {
                if self.hidden.is_some() {
                    return Ok(());
                }
                match effect(&tag.name) {
                    Effect::Hidden if !tag.self_closing => self.hidden = Some(tag.name.to_vec()),
                    Effect::Preformatted => {
                        self.layout.paragraph();
                        self.preformatted += 1;
                    }
                    other => self.separate(&other),
                }
                if **tag.name == *b"img"
                    && let Some(alternative) = tag.attributes.get(b"alt".as_slice())
                {
                    self.layout.space();
                    self.layout.push_words(&String::from_utf8_lossy(alternative))?;
                    self.layout.space();
                }
                Ok(())
            }
            Token::EndTag(tag) => {
                if let Some(hidden) = &self.hidden {
                    if **tag.name == **hidden {
                        self.hidden = None;
                    }
                    return Ok(());
                }
                match effect(&tag.name) {
                    Effect::Preformatted => {
                        self.layout.paragraph();
                        self.preformatted = self.preformatted.saturating_sub(1);
                    }
                    other => self.separate(&other),
                }
                Ok(())
            }
            Token::String(text) if self.hidden.is_none() => {
                let text = String::from_utf8_lossy(text);
                if self.preformatted > 0 { self.layout.push(&text) } else { self.layout.push_words(&text) }
            }
            _ => Ok(()),
        }
    }

    fn separate(&mut self, effect: &Effect) {
        match effect {
            Effect::Line => self.layout.line(),
            Effect::Paragraph => self.layout.paragraph(),
            Effect::Cell => self.layout.tab(),
            Effect::Inline | Effect::Hidden | Effect::Preformatted => {}
        }
    }
}

/// Decodes HTML. In addition to the encodings of text files, it can have the one that it declares.
fn decode(bytes: Vec<u8>) -> Result<String, Rejected> {
    let declared = declared_encoding(&bytes);
    match declared {
        Some(encoding) if std::str::from_utf8(&bytes).is_err() => {
            let (text, _, _) = encoding.decode(&bytes);
            Ok(text::clean(text.into_owned()).text)
        }
        _ => text::decode(bytes),
    }
}

/// Returns the encoding that a document declares in `<meta charset=…>`, `<meta http-equiv …>` or `<?xml … encoding=…?>`.
/// UTF-16 is left out: a declaration that can be read as ASCII is not UTF-16.
fn declared_encoding(bytes: &[u8]) -> Option<&'static Encoding> {
    let beginning = &bytes[..bytes.len().min(DECLARATION_BYTES)];
    let beginning: Cow<'_, str> = String::from_utf8_lossy(beginning);
    let beginning = beginning.to_ascii_lowercase();
    let after = ["charset=", "encoding="].iter().find_map(|name| beginning.split_once(name).map(|(_, after)| after))?;
    let label = after.trim_start_matches(['"', '\'', ' ']);
    let label = &label[..label.find(['"', '\'', ' ', '>', ';', '/', '?']).unwrap_or(label.len())];
    let encoding = Encoding::for_label(label.as_bytes())?;
    let is_wide = encoding == encoding_rs::UTF_16LE || encoding == encoding_rs::UTF_16BE;
    (!is_wide && encoding != encoding_rs::UTF_8).then_some(encoding)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(html: &str) -> String {
        extract(html.as_bytes().to_vec()).unwrap()
    }

    #[test]
    fn blocks_become_lines_and_scripts_are_left_out() {
        let html = "<!DOCTYPE html><html><head><title>The  title</title><style>p { color: red }</style>
            <script>if (a < b) document.write('<p>no</p>')</script></head>
            <body><h1>One &amp; two</h1><p>First <b>bold</b>,\n   second.<p>Third&nbsp;line<br>after a break
            <ul><li>apples<li>pears</ul><!-- comment --><noscript>no</noscript><img src=x alt='A chart'></body></html>";

        assert_eq!(
            text(html),
            "The title\n\nOne & two\n\nFirst bold, second.\n\nThird\u{a0}line\nafter a break\n\napples\npears\n\nA chart"
        );
    }

    #[test]
    fn cells_are_separated_by_tabs_and_rows_by_lines() {
        let html = "<table><tr><th>Name</th><th>Age</th></tr>\n<tr><td><p>Ada</p></td><td>36</td></tr></table>after";

        assert_eq!(text(html), "Name\tAge\n\nAda\n\n36\n\nafter");
    }

    #[test]
    fn preformatted_text_keeps_its_blanks() {
        assert_eq!(text("<p>a<pre>fn f() {\n    1\n}\n</pre>b  c"), "a\n\nfn f() {\n    1\n}\n\n\nb c");
    }

    #[test]
    fn a_declared_encoding_is_used_and_an_unknown_one_is_rejected() {
        let html = |declaration: &str| [declaration.as_bytes(), b"<p>caf\xE9</p>"].concat();
        for declaration in [
            "<meta charset=iso-8859-1>",
            "<META CHARSET=\"windows-1252\">",
            "<meta http-equiv='Content-Type' content='text/html; charset=latin1'>",
            "<?xml version='1.0' encoding='ISO-8859-1'?>",
        ] {
            assert_eq!(extract(html(declaration)).unwrap(), "café", "{declaration}");
        }
        assert!(extract(html("")).unwrap_err().message.contains("0xE9"));
        assert_eq!(text("<meta charset=iso-8859-1><p>café"), "café", "the bytes are UTF-8");
    }

    #[test]
    fn deep_nesting_and_unclosed_elements_are_no_problem() {
        let deep = "<div><b>".repeat(200_000) + "found";
        assert_eq!(text(&deep), "found");
        assert_eq!(text("before<script>never closed <p>x"), "before");
        assert_eq!(text("a < b & c &unknown; <p"), "a < b & c &unknown;");
    }
}
