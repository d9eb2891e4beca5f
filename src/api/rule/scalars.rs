//! The rules of strings, numbers and booleans.

use schemars::SchemaGenerator;
use serde_json::{Value, json};

use super::{At, Error, Rule, out_of_range, too_long, unsupported_value, wrong_type};
use crate::api::id::Id;

/// A string of `min` to `max` characters.
#[derive(Debug, Clone, Copy)]
pub struct Text {
    min: usize,
    max: usize,
}

/// A string of `min` to `max` characters.
#[must_use]
pub fn string(min: usize, max: usize) -> Text {
    Text { min, max }
}

impl Rule for Text {
    type Out = String;

    fn plural(&self) -> &'static str {
        "strings"
    }

    fn read(&self, value: Value, at: &At<'_>) -> Result<String, Error> {
        let Value::String(text) = value else {
            return Err(wrong_type(at, "a string", &value));
        };
        if text.len() > self.max {
            let length = text.chars().count();
            if length > self.max {
                return Err(too_long(at, self.max, length));
            }
        }
        if text.is_empty() && self.min > 0 {
            return Err(Error::invalid(format!(
                "Invalid '{at}': empty string. Expected a string with minimum length {}, \
                 but got an empty string instead.",
                self.min
            ))
            .at(at.to_string())
            .code("empty_string"));
        }
        Ok(text)
    }

    fn schema(&self, _: &mut SchemaGenerator) -> Value {
        let mut schema = json!({"type": "string", "maxLength": self.max});
        if self.min > 0 {
            schema["minLength"] = json!(self.min);
        }
        schema
    }
}

/// A name of letters, digits, underscores and dashes.
#[derive(Debug, Clone, Copy)]
pub struct Name {
    max: usize,
}

/// A name of 1 to `max` letters, digits, underscores or dashes.
#[must_use]
pub fn identifier(max: usize) -> Name {
    Name { max }
}

impl Rule for Name {
    type Out = String;

    fn plural(&self) -> &'static str {
        "strings"
    }

    fn read(&self, value: Value, at: &At<'_>) -> Result<String, Error> {
        let text = string(1, self.max).read(value, at)?;
        if text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-') {
            return Ok(text);
        }
        Err(Error::invalid(format!(
            "Invalid '{at}': string does not match pattern. Expected a string that matches the pattern \
             '^[a-zA-Z0-9_-]+$'."
        ))
        .at(at.to_string())
        .code("invalid_value"))
    }

    fn schema(&self, _: &mut SchemaGenerator) -> Value {
        json!({"type": "string", "pattern": "^[a-zA-Z0-9_-]+$", "minLength": 1, "maxLength": self.max})
    }
}

/// A number in a range, including both limits.
#[derive(Debug, Clone, Copy)]
pub struct Decimal {
    min: f64,
    max: f64,
}

/// A number from `min` to `max`.
#[must_use]
pub fn decimal(min: f64, max: f64) -> Decimal {
    Decimal { min, max }
}

impl Rule for Decimal {
    type Out = f64;

    fn plural(&self) -> &'static str {
        "decimal numbers"
    }

    fn read(&self, value: Value, at: &At<'_>) -> Result<f64, Error> {
        let Some(number) = value.as_f64() else {
            return Err(wrong_type(at, "a decimal number", &value));
        };
        if number < self.min || number > self.max {
            return Err(out_of_range(at, "decimal", &value, number > self.max, self.min, self.max));
        }
        Ok(number)
    }

    fn schema(&self, _: &mut SchemaGenerator) -> Value {
        json!({"type": "number", "minimum": self.min, "maximum": self.max})
    }
}

/// An integer in a range, including both limits.
#[derive(Debug, Clone, Copy)]
pub struct Integer {
    min: u32,
    max: u32,
}

/// An integer from `min` to `max`.
#[must_use]
pub fn integer(min: u32, max: u32) -> Integer {
    Integer { min, max }
}

impl Rule for Integer {
    type Out = u32;

    fn plural(&self) -> &'static str {
        "integers"
    }

    fn read(&self, value: Value, at: &At<'_>) -> Result<u32, Error> {
        let number = large_integer(self.min.into(), self.max.into()).read(value, at)?;
        Ok(u32::try_from(number).expect("it is at most `max`"))
    }

    fn schema(&self, _: &mut SchemaGenerator) -> Value {
        json!({"type": "integer", "minimum": self.min, "maximum": self.max})
    }
}

/// An integer in a range that can exceed 32 bits, including both limits.
#[derive(Debug, Clone, Copy)]
pub struct LargeInteger {
    min: u64,
    max: u64,
}

/// An integer from `min` to `max`, which can exceed 32 bits.
#[must_use]
pub fn large_integer(min: u64, max: u64) -> LargeInteger {
    LargeInteger { min, max }
}

impl Rule for LargeInteger {
    type Out = u64;

    fn plural(&self) -> &'static str {
        "integers"
    }

    fn read(&self, value: Value, at: &At<'_>) -> Result<u64, Error> {
        let value = without_fraction(value);
        let is_integer = value.is_i64() || value.is_u64();
        if !is_integer {
            return Err(wrong_type(at, "an integer", &value));
        }
        match value.as_u64() {
            Some(number) if (self.min..=self.max).contains(&number) => Ok(number),
            number => {
                let above = number.is_some_and(|number| number > self.max);
                Err(out_of_range(at, "integer", &value, above, self.min, self.max))
            }
        }
    }

    fn schema(&self, _: &mut SchemaGenerator) -> Value {
        json!({"type": "integer", "minimum": self.min, "maximum": self.max})
    }
}

/// Returns a decimal number that is whole, such as `45.0`, as an integer: JSON schema does not distinguish them.
#[expect(clippy::cast_possible_truncation, reason = "a whole number that a 64-bit float has exactly")]
fn without_fraction(value: Value) -> Value {
    const EXACT_MAX: f64 = 9_007_199_254_740_992.0;
    match value.as_f64() {
        Some(number) if value.is_f64() && number.fract() == 0.0 && number.abs() <= EXACT_MAX => json!(number as i64),
        _ => value,
    }
}

/// `true` or `false`.
#[derive(Debug, Clone, Copy)]
pub struct Boolean;

/// `true` or `false`.
#[must_use]
pub fn boolean() -> Boolean {
    Boolean
}

impl Rule for Boolean {
    type Out = bool;

    fn plural(&self) -> &'static str {
        "booleans"
    }

    fn read(&self, value: Value, at: &At<'_>) -> Result<bool, Error> {
        value.as_bool().ok_or_else(|| wrong_type(at, "a boolean", &value))
    }

    fn schema(&self, _: &mut SchemaGenerator) -> Value {
        json!({"type": "boolean"})
    }
}

/// One of a list of strings.
#[derive(Debug, Clone, Copy)]
pub struct OneOf<T: 'static> {
    values: &'static [(&'static str, T)],
}

/// One of the strings of a table, each with its value.
#[must_use]
pub fn one_of<T: Copy>(values: &'static [(&'static str, T)]) -> OneOf<T> {
    OneOf { values }
}

impl<T: Copy> Rule for OneOf<T> {
    type Out = T;

    fn plural(&self) -> &'static str {
        "strings"
    }

    fn read(&self, value: Value, at: &At<'_>) -> Result<T, Error> {
        let Value::String(word) = &value else {
            return Err(wrong_type(at, "a string", &value));
        };
        if let Some((_, value)) = self.values.iter().find(|(name, _)| name == word) {
            Ok(*value)
        } else {
            let names: Vec<&str> = self.values.iter().map(|(name, _)| *name).collect();
            Err(unsupported_value(at, word, &names))
        }
    }

    fn schema(&self, _: &mut SchemaGenerator) -> Value {
        let names: Vec<&str> = self.values.iter().map(|(name, _)| *name).collect();
        json!({"type": "string", "enum": names})
    }
}

/// An identifier.
#[derive(Debug, Clone, Copy)]
pub struct IdRule<T>(std::marker::PhantomData<T>);

/// An identifier of type `T`.
#[must_use]
pub fn id<T: Id>() -> IdRule<T> {
    IdRule(std::marker::PhantomData)
}

impl<T: Id> Rule for IdRule<T> {
    type Out = T;

    fn plural(&self) -> &'static str {
        "strings"
    }

    fn read(&self, value: Value, at: &At<'_>) -> Result<T, Error> {
        match value {
            Value::String(text) => T::parse(&text, &at.to_string()),
            other => Err(wrong_type(at, "a string", &other)),
        }
    }

    fn schema(&self, _: &mut SchemaGenerator) -> Value {
        json!({"type": "string", "pattern": format!("^{}", T::PREFIX)})
    }
}
