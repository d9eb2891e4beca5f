//! Validation rules of request bodies. Each rule parses a value, rejects invalid ones, and has a JSON schema.
//!
//! [`request!`](crate::request) generates a struct and its parser from a list of parameters with their rules. One error is
//! reported for each request, in the order of the service: first a missing parameter, then an unknown one, then the first
//! invalid value in the order of the list. The published JSON schema is generated from the same list.

use std::fmt;

use schemars::SchemaGenerator;
use serde_json::{Map, Value, json};

use super::error::Error;
use super::id::Id;

/// The path of a value in a body; displayed as `tools[0].function.name`.
#[derive(Debug, Clone, Copy)]
pub enum At<'a> {
    /// The body itself.
    Root,
    /// A property of an object.
    Member(&'a At<'a>, &'a str),
    /// An element of an array.
    Element(&'a At<'a>, usize),
}

impl At<'_> {
    fn is_root(&self) -> bool {
        matches!(self, At::Root)
    }
}

impl fmt::Display for At<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            At::Root => Ok(()),
            At::Member(parent, name) if parent.is_root() => f.write_str(name),
            At::Member(parent, name) => write!(f, "{parent}.{name}"),
            At::Element(parent, index) => write!(f, "{parent}[{index}]"),
        }
    }
}

/// A validation rule of a value.
pub trait Rule {
    /// The parsed value.
    type Out;

    /// Parses the value.
    ///
    /// # Errors
    /// 400 that names the parameter at `at`.
    fn read(&self, value: Value, at: &At<'_>) -> Result<Self::Out, Error>;

    /// Returns the plural of the value type for error messages.
    fn plural(&self) -> &'static str {
        "objects"
    }

    /// Returns the JSON schema of the rule; adds named schemas to `schemas`.
    fn schema(&self, schemas: &mut SchemaGenerator) -> Value;
}

/// A request body, or an object in one.
pub trait Request: Sized {
    /// The name of the published schema.
    const NAME: &'static str;

    /// Returns the JSON schema of the object.
    fn schema(schemas: &mut SchemaGenerator) -> Value;

    /// Parses an object.
    ///
    /// # Errors
    /// 400 that names the first missing, unknown or invalid parameter.
    fn read(members: Map<String, Value>, at: &At<'_>) -> Result<Self, Error>;

    /// Parses a whole body.
    ///
    /// # Errors
    /// Like [`Request::read`], and 400 if the body is not an object.
    fn parse(body: Value) -> Result<Self, Error> {
        object::<Self>().read(body, &At::Root)
    }
}

/// A parameter that can be absent, null to clear the value, or a new value.
#[derive(Debug, Clone, PartialEq, Default)]
pub enum Patch<T> {
    /// Absent: the value is unchanged.
    #[default]
    Keep,
    /// Null: the value is cleared.
    Clear,
    /// A new value.
    Set(T),
}

impl<T> Patch<T> {
    /// Applies the patch to `target`. Clearing sets the default of the type.
    pub fn apply(self, target: &mut T)
    where
        T: Default,
    {
        match self {
            Self::Keep => {}
            Self::Clear => *target = T::default(),
            Self::Set(value) => *target = value,
        }
    }

    /// Like [`Patch::apply`], for a value that may be `None`.
    pub fn apply_optional(self, target: &mut Option<T>) {
        match self {
            Self::Keep => {}
            Self::Clear => *target = None,
            Self::Set(value) => *target = Some(value),
        }
    }
}

/// Defines a request type: a struct, and a parser generated from the rule of each parameter.
///
/// `required` is a `T`; `optional` is an `Option<T>`, where null means absent; `patch` is a [`Patch<T>`], where null
/// clears the value.
#[macro_export]
macro_rules! request {
    (
        $(#[$doc:meta])*
        pub struct $name:ident {
            $( $(#[$member_doc:meta])* $kind:ident $member:ident: $type:ty = $rule:expr; )*
        }
    ) => {
        $(#[$doc])*
        #[derive(Debug, Clone)]
        #[allow(missing_docs, reason = "the fields are those of the API reference, with their rules")]
        pub struct $name {
            $( $(#[$member_doc])* pub $member: $crate::request!(@type $kind $type), )*
        }

        impl $crate::api::rule::Request for $name {
            const NAME: &'static str = stringify!($name);

            #[allow(unused_variables, reason = "unused in a body without parameters")]
            fn schema(schemas: &mut schemars::SchemaGenerator) -> serde_json::Value {
                $crate::api::rule::members_schema(vec![$( (
                    $crate::api::rule::name(stringify!($member)),
                    $crate::request!(@required $kind),
                    $crate::api::rule::schema_of::<$type>(&$rule, schemas),
                ) ),*])
            }

            #[allow(unused_mut, unused_variables, reason = "unused in a body without parameters")]
            fn read(
                mut members: serde_json::Map<String, serde_json::Value>,
                at: &$crate::api::rule::At<'_>,
            ) -> Result<Self, $crate::api::Error> {
                $crate::api::rule::check_members(
                    &members,
                    at,
                    &[$( ($crate::api::rule::name(stringify!($member)), $crate::request!(@required $kind)) ),*],
                )?;
                Ok(Self {
                    $( $member: $crate::api::rule::$kind(
                        &mut members,
                        $crate::api::rule::name(stringify!($member)),
                        &$rule,
                        at,
                    )?, )*
                })
            }
        }
    };
    (@type required $type:ty) => { $type };
    (@type optional $type:ty) => { Option<$type> };
    (@type patch $type:ty) => { $crate::api::rule::Patch<$type> };
    (@required required) => { true };
    (@required optional) => { false };
    (@required patch) => { false };
}

/// Returns the wire name of a field: without the `r#` of a raw identifier.
#[must_use]
pub fn name(member: &'static str) -> &'static str {
    member.strip_prefix("r#").unwrap_or(member)
}

/// Checks for missing and unknown parameters.
///
/// # Errors
/// 400 `missing_required_parameter` or `unknown_parameter`.
pub fn check_members(members: &Map<String, Value>, at: &At<'_>, known: &[(&str, bool)]) -> Result<(), Error> {
    if let Some((name, _)) = known.iter().find(|(name, required)| *required && !members.contains_key(*name)) {
        return Err(missing(&At::Member(at, name)));
    }
    if let Some(unknown) = members.keys().find(|key| !known.iter().any(|(name, _)| name == key)) {
        let at = At::Member(at, unknown);
        return Err(Error::invalid(format!("Unknown parameter: '{at}'.")).at(at.to_string()).code("unknown_parameter"));
    }
    Ok(())
}

/// Returns the schema of a rule with the result `T`.
#[must_use]
pub fn schema_of<T>(rule: &impl Rule<Out = T>, schemas: &mut SchemaGenerator) -> Value {
    rule.schema(schemas)
}

/// Returns the schema of an object with these properties: name, whether it is required, schema. Optional properties may be
/// null.
#[must_use]
pub fn members_schema(members: Vec<(&str, bool, Value)>) -> Value {
    let required: Vec<&str> = members.iter().filter(|(_, required, _)| *required).map(|(name, ..)| *name).collect();
    let properties: Map<String, Value> = members
        .into_iter()
        .map(|(name, required, schema)| (name.to_owned(), if required { schema } else { nullable(schema) }))
        .collect();
    let mut schema = json!({"type": "object", "properties": properties, "additionalProperties": false});
    if !required.is_empty() {
        schema["required"] = json!(required);
    }
    schema
}

fn nullable(mut schema: Value) -> Value {
    match schema.get("type") {
        Some(Value::String(kind)) if schema.get("enum").is_none() => {
            schema["type"] = json!([kind, "null"]);
            schema
        }
        _ => json!({"anyOf": [schema, {"type": "null"}]}),
    }
}

/// Returns the schema of an object whose other properties depend on its `type`; [`tagged`] parses it.
#[must_use]
pub fn tagged_schema(variants: Vec<(&str, Value)>) -> Value {
    let variants: Vec<Value> = variants
        .into_iter()
        .map(|(tag, mut schema)| {
            schema["properties"]["type"] = json!({"type": "string", "const": tag});
            let mut required = vec![json!("type")];
            required.extend(schema["required"].as_array().cloned().unwrap_or_default());
            schema["required"] = Value::Array(required);
            schema
        })
        .collect();
    json!({"oneOf": variants})
}

/// Returns 400 `Missing required parameter: 'assistant_id'.`
#[must_use]
pub fn missing(at: &At<'_>) -> Error {
    Error::invalid(format!("Missing required parameter: '{at}'.")).at(at.to_string()).code("missing_required_parameter")
}

/// Parses a required parameter.
///
/// # Errors
/// Those of the rule.
pub fn required<R: Rule>(members: &mut Map<String, Value>, name: &str, rule: &R, at: &At<'_>) -> Result<R::Out, Error> {
    rule.read(members.get_mut(name).map_or(Value::Null, Value::take), &At::Member(at, name))
}

/// Parses a parameter that may be absent or null.
///
/// # Errors
/// Those of the rule.
pub fn optional<R: Rule>(
    members: &mut Map<String, Value>,
    name: &str,
    rule: &R,
    at: &At<'_>,
) -> Result<Option<R::Out>, Error> {
    match members.get_mut(name).map(Value::take) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => rule.read(value, &At::Member(at, name)).map(Some),
    }
}

/// Parses a parameter where null clears the value.
///
/// # Errors
/// Those of the rule.
pub fn patch<R: Rule>(
    members: &mut Map<String, Value>,
    name: &str,
    rule: &R,
    at: &At<'_>,
) -> Result<Patch<R::Out>, Error> {
    match members.get_mut(name).map(Value::take) {
        None => Ok(Patch::Keep),
        Some(Value::Null) => Ok(Patch::Clear),
        Some(value) => rule.read(value, &At::Member(at, name)).map(Patch::Set),
    }
}

/// Returns the type of a value for error messages.
fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(number) if number.is_f64() => "a decimal number",
        Value::Number(_) => "an integer",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

/// Returns 400 `Invalid type for 'x': expected a string, but got a boolean instead.`
#[must_use]
pub fn wrong_type(at: &At<'_>, expected: &str, got: &Value) -> Error {
    let kind = kind_of(got);
    let message = if at.is_root() {
        format!("Invalid type for the request body: expected {expected}, but got {kind} instead.")
    } else {
        format!("Invalid type for '{at}': expected {expected}, but got {kind} instead.")
    };
    let error = Error::invalid(message).code("invalid_type");
    if at.is_root() { error } else { error.at(at.to_string()) }
}

/// Returns 400 `Invalid value: 'x'. Supported values are: 'a', 'b', and 'c'.`
#[must_use]
pub fn unsupported_value(at: &At<'_>, got: &str, supported: &[&str]) -> Error {
    let quoted: Vec<String> = supported.iter().map(|value| format!("'{value}'")).collect();
    let list = match quoted.as_slice() {
        [] => String::new(),
        [one] => one.clone(),
        [first, second] => format!("{first} and {second}"),
        [init @ .., last] => format!("{}, and {last}", init.join(", ")),
    };
    Error::invalid(format!("Invalid value: '{got}'. Supported values are: {list}."))
        .at(at.to_string())
        .code("invalid_value")
}

/// Returns 400 `Invalid 'name': string too long. Expected a string with maximum length 256, but got a string with length
/// 257 instead.`
#[must_use]
pub fn too_long(at: &At<'_>, max: usize, length: usize) -> Error {
    Error::invalid(format!(
        "Invalid '{at}': string too long. Expected a string with maximum length {max}, but got a string with length \
         {length} instead."
    ))
    .at(at.to_string())
    .code("string_above_max_length")
}

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
        let is_integer = value.is_i64() || value.is_u64();
        if !is_integer {
            return Err(wrong_type(at, "an integer", &value));
        }
        match value.as_u64().and_then(|number| u32::try_from(number).ok()) {
            Some(number) if (self.min..=self.max).contains(&number) => Ok(number),
            _ => {
                let above = value.as_i64().is_none_or(|number| number > i64::from(self.max));
                Err(out_of_range(at, "integer", &value, above, self.min, self.max))
            }
        }
    }

    fn schema(&self, _: &mut SchemaGenerator) -> Value {
        json!({"type": "integer", "minimum": self.min, "maximum": self.max})
    }
}

/// Returns 400 `Invalid 'limit': integer above maximum value. Expected a value <= 100, but got 101 instead.`
pub fn out_of_range(
    at: &At<'_>,
    noun: &str,
    got: &dyn fmt::Display,
    above: bool,
    min: impl fmt::Display,
    max: impl fmt::Display,
) -> Error {
    let (text, code) = match (above, noun) {
        (true, "decimal") => {
            (format!("decimal above maximum value. Expected a value <= {max}"), "decimal_above_max_value")
        }
        (true, _) => (format!("integer above maximum value. Expected a value <= {max}"), "integer_above_max_value"),
        (false, "decimal") => {
            (format!("decimal below minimum value. Expected a value >= {min}"), "decimal_below_min_value")
        }
        (false, _) => (format!("integer below minimum value. Expected a value >= {min}"), "integer_below_min_value"),
    };
    Error::invalid(format!("Invalid '{at}': {text}, but got {got} instead.")).at(at.to_string()).code(code)
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

/// An array whose elements have the same rule.
#[derive(Debug, Clone, Copy)]
pub struct Array<R> {
    element: R,
    min: usize,
    max: usize,
}

/// An array of `min` to `max` elements with the rule `element`.
#[must_use]
pub fn array<R: Rule>(element: R, min: usize, max: usize) -> Array<R> {
    Array { element, min, max }
}

impl<R: Rule> Rule for Array<R> {
    type Out = Vec<R::Out>;

    fn read(&self, value: Value, at: &At<'_>) -> Result<Vec<R::Out>, Error> {
        let Value::Array(elements) = value else {
            return Err(wrong_type(at, &format!("an array of {}", self.element.plural()), &value));
        };
        if elements.len() > self.max {
            return Err(Error::invalid(format!(
                "Invalid '{at}': array too long. Expected an array with maximum length {}, \
                 but got an array with length {} instead.",
                self.max,
                elements.len()
            ))
            .at(at.to_string())
            .code("array_above_max_length"));
        }
        if elements.len() < self.min {
            return Err(Error::invalid(format!(
                "Invalid '{at}': empty array. Expected an array with minimum length {}, \
                 but got an empty array instead.",
                self.min
            ))
            .at(at.to_string())
            .code("empty_array"));
        }
        elements
            .into_iter()
            .enumerate()
            .map(|(index, element)| self.element.read(element, &At::Element(at, index)))
            .collect()
    }

    fn schema(&self, schemas: &mut SchemaGenerator) -> Value {
        let mut schema = json!({"type": "array", "items": self.element.schema(schemas), "maxItems": self.max});
        if self.min > 0 {
            schema["minItems"] = json!(self.min);
        }
        schema
    }
}

/// An object of a request type.
#[derive(Debug, Clone, Copy)]
pub struct Object<T>(std::marker::PhantomData<T>);

/// An object that is parsed as `T`.
#[must_use]
pub fn object<T: Request>() -> Object<T> {
    Object(std::marker::PhantomData)
}

impl<T: Request> Rule for Object<T> {
    type Out = T;

    fn read(&self, value: Value, at: &At<'_>) -> Result<T, Error> {
        match value {
            Value::Object(members) => T::read(members, at),
            other => Err(wrong_type(at, "an object", &other)),
        }
    }

    fn schema(&self, schemas: &mut SchemaGenerator) -> Value {
        if !schemas.definitions().contains_key(T::NAME) {
            let schema = T::schema(schemas);
            schemas.definitions_mut().insert(T::NAME.to_owned(), schema);
        }
        json!({"$ref": format!("#/components/schemas/{}", T::NAME)})
    }
}

/// An object with any properties, such as a JSON schema.
#[derive(Debug, Clone, Copy)]
pub struct FreeObject;

/// Any object.
#[must_use]
pub fn free_object() -> FreeObject {
    FreeObject
}

impl Rule for FreeObject {
    type Out = Map<String, Value>;

    fn read(&self, value: Value, at: &At<'_>) -> Result<Map<String, Value>, Error> {
        match value {
            Value::Object(members) => Ok(members),
            other => Err(wrong_type(at, "an object", &other)),
        }
    }

    fn schema(&self, _: &mut SchemaGenerator) -> Value {
        json!({"type": "object"})
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

/// A rule defined by functions.
#[derive(Debug, Clone, Copy)]
pub struct Custom<F, S>(F, S);

/// A rule defined by a parser and a schema.
pub fn custom<T, F, S>(read: F, schema: S) -> Custom<F, S>
where
    F: Fn(Value, &At<'_>) -> Result<T, Error>,
    S: Fn(&mut SchemaGenerator) -> Value,
{
    Custom(read, schema)
}

impl<T, F, S> Rule for Custom<F, S>
where
    F: Fn(Value, &At<'_>) -> Result<T, Error>,
    S: Fn(&mut SchemaGenerator) -> Value,
{
    type Out = T;

    fn read(&self, value: Value, at: &At<'_>) -> Result<T, Error> {
        (self.0)(value, at)
    }

    fn schema(&self, schemas: &mut SchemaGenerator) -> Value {
        (self.1)(schemas)
    }
}

/// Removes and returns `type` from an object whose other properties depend on it.
///
/// # Errors
/// 400 if the value is not an object, or its `type` is missing or not one of `supported`.
pub fn tagged(
    value: Value,
    at: &At<'_>,
    supported: &'static [&'static str],
) -> Result<(&'static str, Map<String, Value>), Error> {
    let Value::Object(mut members) = value else {
        return Err(wrong_type(at, "an object", &value));
    };
    let type_at = At::Member(at, "type");
    let tag = match members.shift_remove("type") {
        Some(Value::String(tag)) => tag,
        Some(other) => return Err(wrong_type(&type_at, "a string", &other)),
        None => return Err(missing(&type_at)),
    };
    match supported.iter().find(|name| **name == tag) {
        Some(name) => Ok((name, members)),
        None => Err(unsupported_value(&type_at, &tag, supported)),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    request! {
        /// A body with one parameter of each type.
        pub struct Sample {
            required model: String = string(1, 4);
            optional limit: u32 = integer(1, 100);
            optional temperature: f64 = decimal(0.0, 2.0);
            patch name: String = string(0, 256);
            optional r#type: &'static str = one_of(&[("a", "a"), ("b", "b"), ("c", "c")]);
            optional items: Vec<bool> = array(boolean(), 1, 2);
        }
    }

    fn error_of(body: Value) -> (String, Option<String>, Option<&'static str>) {
        let error = Sample::parse(body).unwrap_err();
        (error.message, error.param, error.code)
    }

    #[test]
    fn each_error_has_its_message_and_code() {
        let cases = [
            (json!({}), "Missing required parameter: 'model'.", "missing_required_parameter"),
            (json!({"model": "m", "foo": 1}), "Unknown parameter: 'foo'.", "unknown_parameter"),
            (
                json!({"model": true}),
                "Invalid type for 'model': expected a string, but got a boolean instead.",
                "invalid_type",
            ),
            (
                json!({"model": "m", "limit": 101}),
                "Invalid 'limit': integer above maximum value. Expected a value <= 100, but got 101 instead.",
                "integer_above_max_value",
            ),
            (
                json!({"model": "m", "limit": -1}),
                "Invalid 'limit': integer below minimum value. Expected a value >= 1, but got -1 instead.",
                "integer_below_min_value",
            ),
            (
                json!({"model": "m", "temperature": 3}),
                "Invalid 'temperature': decimal above maximum value. Expected a value <= 2, but got 3 instead.",
                "decimal_above_max_value",
            ),
            (
                json!({"model": "12345"}),
                "Invalid 'model': string too long. Expected a string with maximum length 4, but got a string with \
                 length 5 instead.",
                "string_above_max_length",
            ),
            (
                json!({"model": ""}),
                "Invalid 'model': empty string. Expected a string with minimum length 1, but got an empty string \
                 instead.",
                "empty_string",
            ),
            (
                json!({"model": "m", "type": "z"}),
                "Invalid value: 'z'. Supported values are: 'a', 'b', and 'c'.",
                "invalid_value",
            ),
            (
                json!({"model": "m", "items": []}),
                "Invalid 'items': empty array. Expected an array with minimum length 1, but got an empty array \
                 instead.",
                "empty_array",
            ),
            (
                json!({"model": "m", "items": [true, 1]}),
                "Invalid type for 'items[1]': expected a boolean, but got an integer instead.",
                "invalid_type",
            ),
        ];

        for (body, message, code) in cases {
            let (got, _, got_code) = error_of(body);
            assert_eq!((got.as_str(), got_code), (message, Some(code)));
        }
    }

    #[test]
    fn errors_are_reported_in_the_order_missing_unknown_invalid() {
        assert_eq!(error_of(json!({"foo": 1, "limit": "x"})).0, "Missing required parameter: 'model'.");
        assert_eq!(error_of(json!({"model": 1, "foo": 1})).0, "Unknown parameter: 'foo'.");
    }

    #[test]
    fn null_means_absent_or_clears_a_patch_parameter() {
        let sample = Sample::parse(json!({"model": "m", "limit": null, "name": null, "type": "b"})).unwrap();

        assert_eq!((sample.model.as_str(), sample.limit, sample.temperature), ("m", None, None));
        assert_eq!((sample.name, sample.r#type, sample.items), (Patch::Clear, Some("b"), None));
    }
}
