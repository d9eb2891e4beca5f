//! Validation rules of request bodies. Each rule parses a value, rejects invalid ones, and has a JSON schema.
//!
//! [`request!`](crate::request) generates a struct and its parser from a list of parameters with their rules. One error is
//! reported for each request, in the order of the service: first a missing parameter, then an unknown one, then the first
//! invalid value in the order of the list. The published JSON schema is generated from the same list.

mod containers;
mod errors;
mod scalars;
mod schema;

use std::fmt;

use schemars::SchemaGenerator;
use serde_json::{Map, Value};

use super::error::Error;

pub use containers::{Array, FreeObject, Object, array, free_object, object, tagged};
pub use errors::{missing, out_of_range, too_long, unsupported_value, wrong_type};
pub use scalars::{
    Boolean, Decimal, IdRule, Integer, LargeInteger, Name, OneOf, Text, boolean, decimal, id, identifier, integer,
    large_integer, one_of, string,
};
pub use schema::{members_schema, schema_of, tagged_schema};

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
