//! The code interpreter of a run: the function that the model calls, and the code in its arguments. Pure.
//!
//! Models write code in many forms:
//!
//! | form | example |
//! | --- | --- |
//! | a JSON object with one text, also with raw line feeds | `{"code": "print(1)"}`, `{"input": …}` |
//! | a JSON string | `"print(1)"` |
//! | code alone | `print(1)` |
//! | in a Markdown code block, alone or in the text of the object | ```` ```python ```` … ```` ``` ```` |

use serde_json::{Map, Value, json};

use crate::api::run::RunSpec;
use crate::api::tool::{CalledCodeInterpreter, CalledTool, Tool};
use crate::llm::lenient;

/// The name of the function, unless a function of the client has it. Models of OpenAI know it.
const NAME: &str = "python";
/// The member of the arguments that has the code.
const CODE: &str = "code";
/// Other names that models use for it.
const OTHER_NAMES: [&str; 6] = ["input", "python", "source", "script", "python_code", "cmd"];
/// Other names that models use for the function.
const ALIASES: [&str; 5] = ["code_interpreter", "ipython", "python3", "execute_python", "run_python"];

/// Returns whether the run has the tool.
#[must_use]
pub fn is_offered(spec: &RunSpec) -> bool {
    spec.tools.contains(&Tool::CodeInterpreter)
}

/// Returns the name under which the code interpreter is offered to the model. It differs from the names of all functions
/// of the run.
#[must_use]
pub fn name(spec: &RunSpec) -> String {
    super::file_search::free_name(spec, NAME)
}

/// Returns a call without code.
#[must_use]
pub fn unanswered() -> CalledTool {
    CalledTool::CodeInterpreter { code_interpreter: CalledCodeInterpreter::default() }
}

/// Returns the function for the model, in the form of chat completions.
#[must_use]
pub fn definition(name: &str) -> Value {
    json!({"type": "function", "function": {
        "name": name,
        "description": "Runs Python code and returns what it prints and the value of its last expression. Variables are kept \
                        between calls. The user's files are in /mnt/data; files that the code writes there are given to the \
                        user: refer to them as [name](sandbox:/mnt/data/name). Plots are shown to the user. numpy, pandas, \
                        scipy, scikit-learn, matplotlib, sympy and Pillow are installed. The network and pip cannot be used.",
        "parameters": {
            "type": "object",
            "properties": {CODE: {"type": "string", "description": "The Python code."}},
            "required": [CODE],
        },
    }})
}

/// Returns whether a name is one that models use for a code interpreter.
#[must_use]
pub fn is_alias(name: &str) -> bool {
    ALIASES.contains(&name)
}

/// Returns the arguments of a call as JSON, and the call without results.
#[must_use]
pub fn call(arguments: &str) -> (String, CalledTool) {
    let input = code(arguments);
    let is_object = serde_json::from_str::<Map<String, Value>>(arguments).is_ok();
    // Model servers reject arguments that are not an object when they read them again.
    let arguments = if is_object { arguments.to_owned() } else { json!({CODE: input}).to_string() };
    let code_interpreter = CalledCodeInterpreter { input, ..CalledCodeInterpreter::default() };
    (arguments, CalledTool::CodeInterpreter { code_interpreter })
}

/// Returns the code in the arguments of a call.
#[must_use]
pub fn code(arguments: &str) -> String {
    let text = match lenient::parse(arguments) {
        Some(Value::Object(members)) => {
            let named = std::iter::once(CODE).chain(OTHER_NAMES).find_map(|name| members.get(name)?.as_str());
            let mut texts = members.values().filter_map(Value::as_str);
            let only = texts.next().filter(|_| texts.next().is_none());
            match named.or(only) {
                Some(text) => text.to_owned(),
                // A dictionary or a set: Python, and not arguments.
                None if members.is_empty() => String::new(),
                None => arguments.to_owned(),
            }
        }
        Some(Value::String(text)) => text,
        Some(_) | None => partial(arguments).unwrap_or_else(|| arguments.to_owned()),
    };
    match block(&text) {
        Some(code) => code.to_owned(),
        None => text,
    }
}

/// Returns the code of an object that is not complete, because the model has forgotten its end.
fn partial(arguments: &str) -> Option<String> {
    let mut reader = CodeReader::default();
    let code = reader.push(arguments);
    (!code.is_empty()).then_some(code)
}

/// Returns the text of a Markdown code block that is the whole text.
fn block(text: &str) -> Option<&str> {
    let inner = text.trim().strip_prefix("```")?;
    let inner = inner.strip_suffix("```").unwrap_or(inner);
    let (language, code) = inner.split_once('\n')?;
    let language = language.trim();
    language.chars().all(char::is_alphanumeric).then_some(code.trim_end())
}

/// Reads the code from arguments that arrive in pieces, if they are an object whose first member has it. Otherwise returns
/// nothing, and the code is known when the arguments are complete.
#[derive(Debug, Default)]
pub struct CodeReader {
    state: State,
    /// The characters of an escape so far, from its backslash.
    escape: String,
    /// The first half of a surrogate pair.
    surrogate: Option<u32>,
    /// Whether the text may be a Markdown code block, which is not read in pieces.
    starts: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum State {
    /// Before the text: how many characters of `{"code":"` were read.
    Before(usize),
    /// In the text.
    Text,
    /// After it, or in another form.
    Other,
}

impl Default for State {
    fn default() -> Self {
        Self::Before(0)
    }
}

/// What stands before the text, without blanks.
const PREFIX: &str = "{\"code\":\"";

impl CodeReader {
    /// Reads the next piece of the arguments, and returns the code in it.
    #[must_use]
    pub fn push(&mut self, piece: &str) -> String {
        let mut code = String::new();
        for character in piece.chars() {
            match self.state {
                State::Before(position) => self.before(position, character),
                State::Text => self.text(character, &mut code),
                State::Other => break,
            }
        }
        code
    }

    fn before(&mut self, position: usize, character: char) {
        let in_name = (2..PREFIX.len() - 3).contains(&position);
        if character.is_whitespace() && !in_name {
            return;
        }
        self.state = match PREFIX[position..].starts_with(character) {
            true if position + 1 == PREFIX.len() => State::Text,
            true => State::Before(position + 1),
            false => State::Other,
        };
        self.starts = self.state == State::Text;
    }

    fn text(&mut self, character: char, code: &mut String) {
        if self.escape.is_empty() {
            match character {
                '"' => self.state = State::Other,
                '\\' => self.escape.push(character),
                // A code block, whose first and last lines are not code.
                '`' if self.starts => self.state = State::Other,
                _ => self.emit(character, code),
            }
            return;
        }
        self.escape.push(character);
        let is_unicode = self.escape.starts_with("\\u");
        if is_unicode && self.escape.len() < 6 {
            return;
        }
        let escape = std::mem::take(&mut self.escape);
        if is_unicode {
            let unit = u32::from_str_radix(&escape[2..], 16).unwrap_or(0xFFFD);
            match (self.surrogate.take(), unit) {
                (Some(high), 0xDC00..=0xDFFF) => {
                    let combined = 0x1_0000 + ((high - 0xD800) << 10) + (unit - 0xDC00);
                    self.emit(char::from_u32(combined).unwrap_or('\u{FFFD}'), code);
                }
                (None, 0xD800..=0xDBFF) => self.surrogate = Some(unit),
                _ => self.emit(char::from_u32(unit).unwrap_or('\u{FFFD}'), code),
            }
            return;
        }
        let unescaped = match character {
            'n' => '\n',
            't' => '\t',
            'r' => '\r',
            'b' => '\u{8}',
            'f' => '\u{c}',
            other => other,
        };
        self.emit(unescaped, code);
    }

    fn emit(&mut self, character: char, code: &mut String) {
        self.starts &= character.is_whitespace();
        code.push(character);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn code_is_read_in_every_form() {
        let long = "import os\nprint(\"a\\tb\")";
        for (arguments, expected) in [
            (json!({"code": long}).to_string(), long),
            (json!({"input": long}).to_string(), long),
            (json!({"anything": long, "timeout": 5}).to_string(), long),
            ("{\"code\": \"a = 1\nb = 2\"}".to_owned(), "a = 1\nb = 2"),
            (json!(long).to_string(), long),
            (long.to_owned(), long),
            (format!("```python\n{long}\n```"), long),
            (format!("```\n{long}\n```\n"), long),
            (json!({"code": format!("```py\n{long}\n```")}).to_string(), long),
            ("{\"code\": \"print(1)".to_owned(), "print(1)"),
            ("{1, 2}".to_owned(), "{1, 2}"),
            ("{\"a\": 1}".to_owned(), "{\"a\": 1}"),
            ("{}".to_owned(), ""),
            (String::new(), ""),
            ("17".to_owned(), "17"),
            ("[1]".to_owned(), "[1]"),
            ("print('`')".to_owned(), "print('`')"),
        ] {
            assert_eq!(code(&arguments), expected, "{arguments}");
        }
    }

    /// Returns the code that is read of arguments in pieces of this length.
    fn streamed(arguments: &str, length: usize) -> String {
        let characters: Vec<char> = arguments.chars().collect();
        let mut reader = CodeReader::default();
        characters.chunks(length).map(|piece| reader.push(&piece.iter().collect::<String>())).collect()
    }

    #[test]
    fn only_the_usual_form_is_read_in_pieces() {
        assert_eq!(streamed(" {\n\"code\" : \"a\\n\\u00e9\\ud83d\\ude00\" , \"x\": \"y\"}", 1), "a\né😀");
        for other in ["print(1)", "{\"input\": \"a\"}", "\"a\"", "{\"c ode\": \"a\"}", "```\na\n```", "{\"code\": 1}"] {
            assert_eq!(streamed(other, 1), "", "{other}");
        }
        assert_eq!(streamed(&json!({"code": "```py\nx\n```"}).to_string(), 2), "");
    }

    proptest! {
        #[test]
        fn what_is_read_in_pieces_is_a_beginning_of_the_code(
            text in "[ -~\\n\\t\"\\\\éß😀`]{0,60}", length in 1_usize..9, cut in 0_usize..80,
        ) {
            let arguments = json!({"code": text}).to_string();
            let cut: String = arguments.chars().take(cut).collect();

            let (whole, beginning) = (streamed(&arguments, length), streamed(&cut, length));

            let code = code(&arguments);
            prop_assert!(code.starts_with(&beginning), "{code:?} {beginning:?}");
            prop_assert!(whole == code || whole.trim().is_empty(), "{code:?} {whole:?}");
        }
    }
}
