//! Filters of searches by the attributes of files.

use std::cmp::Ordering;

use schemars::SchemaGenerator;
use serde_json::{Number, Value, json};

use super::Attributes;
use crate::api::error::Error;
use crate::api::metadata::{KEY_CHARS_MAX, VALUE_CHARS_MAX};
use crate::api::rule::{At, Rule, array, custom, object, string, tagged, wrong_type};
use crate::request;

/// Maximum depth of nested filters. The service documents none; this bounds the recursion.
const DEPTH_MAX: usize = 8;
/// Maximum number of comparisons of a filter. The service documents none; this bounds the work for each file.
const COMPARISONS_MAX: usize = 200;
/// Maximum number of values of `in` and `nin`. The service documents none; this bounds the work for each file.
const VALUES_MAX: usize = 1_000;

/// A filter of files by their attributes.
#[derive(Debug, Clone, PartialEq)]
pub enum Filter {
    /// Compares one attribute.
    Comparison(Comparison),
    /// All filters match.
    And(Vec<Filter>),
    /// At least one filter matches.
    Or(Vec<Filter>),
}

/// A comparison of an attribute with one or several values.
#[derive(Debug, Clone, PartialEq)]
pub struct Comparison {
    key: String,
    operator: Operator,
    /// One value, except for `in` and `nin`.
    values: Vec<Value>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Operator {
    Eq,
    Ne,
    Gt,
    Gte,
    Lt,
    Lte,
    In,
    Nin,
}

/// The supported values of `type`.
const TYPES: [&str; 10] = ["eq", "ne", "gt", "gte", "lt", "lte", "in", "nin", "and", "or"];

impl Filter {
    /// Returns whether a file with these attributes matches.
    ///
    /// An attribute that is missing, or of another type than the value, is different from the value: it matches only `ne`
    /// and `nin`. Strings are ordered by their characters.
    #[must_use]
    pub fn matches(&self, attributes: &Attributes) -> bool {
        match self {
            Self::Comparison(comparison) => comparison.matches(attributes),
            Self::And(filters) => filters.iter().all(|filter| filter.matches(attributes)),
            Self::Or(filters) => filters.iter().any(|filter| filter.matches(attributes)),
        }
    }

    fn comparisons(&self) -> usize {
        match self {
            Self::Comparison(_) => 1,
            Self::And(filters) | Self::Or(filters) => filters.iter().map(Self::comparisons).sum(),
        }
    }
}

impl Comparison {
    fn matches(&self, attributes: &Attributes) -> bool {
        let attribute = attributes.get(&self.key);
        let mut orders = self.values.iter().map(|value| attribute.and_then(|attribute| compare(attribute, value)));
        match self.operator {
            Operator::Eq | Operator::In => orders.any(|order| order == Some(Ordering::Equal)),
            Operator::Ne | Operator::Nin => orders.all(|order| order != Some(Ordering::Equal)),
            Operator::Gt => orders.any(|order| order == Some(Ordering::Greater)),
            Operator::Gte => orders.any(|order| order.is_some_and(Ordering::is_ge)),
            Operator::Lt => orders.any(|order| order == Some(Ordering::Less)),
            Operator::Lte => orders.any(|order| order.is_some_and(Ordering::is_le)),
        }
    }
}

/// Compares two values; `None` if they have different types.
fn compare(one: &Value, other: &Value) -> Option<Ordering> {
    match (one, other) {
        (Value::String(one), Value::String(other)) => Some(one.cmp(other)),
        (Value::Bool(one), Value::Bool(other)) => Some(one.cmp(other)),
        (Value::Number(one), Value::Number(other)) => compare_numbers(one, other),
        _ => None,
    }
}

/// Compares two numbers. Integers are compared exactly, also those that a float cannot represent.
fn compare_numbers(one: &Number, other: &Number) -> Option<Ordering> {
    match (one.as_i128(), other.as_i128()) {
        (Some(one), Some(other)) => Some(one.cmp(&other)),
        _ => one.as_f64()?.partial_cmp(&other.as_f64()?),
    }
}

request! {
    /// A comparison in a request.
    pub struct ComparisonRequest {
        required key: String = string(1, KEY_CHARS_MAX);
        required value: Value = custom(|value, _: &At<'_>| Ok(value), value_schema);
    }
}

request! {
    /// A combination of filters in a request.
    pub struct CompoundRequest {
        required filters: Value = custom(|value, _: &At<'_>| Ok(value), filters_schema);
    }
}

/// The rule for `filters`.
#[must_use]
pub fn filter() -> impl Rule<Out = Filter> + Copy {
    let read = |value, at: &At<'_>| {
        let filter = read_filter(value, at, 1)?;
        let comparisons = filter.comparisons();
        if comparisons <= COMPARISONS_MAX {
            return Ok(filter);
        }
        Err(Error::invalid(format!(
            "Invalid '{at}': too many comparisons. Expected a filter with at most {COMPARISONS_MAX} comparisons, but got a \
             filter with {comparisons} comparisons instead."
        ))
        .at(at.to_string())
        .code("array_above_max_length"))
    };
    custom(read, filter_schema)
}

fn read_filter(value: Value, at: &At<'_>, depth: usize) -> Result<Filter, Error> {
    let (kind, members) = tagged(value, at, &TYPES)?;
    let operator = match kind {
        "eq" => Operator::Eq,
        "ne" => Operator::Ne,
        "gt" => Operator::Gt,
        "gte" => Operator::Gte,
        "lt" => Operator::Lt,
        "lte" => Operator::Lte,
        "in" => Operator::In,
        "nin" => Operator::Nin,
        _ => {
            let CompoundRequest { filters } = object().read(members.into(), at)?;
            let filters = read_filters(filters, &At::Member(at, "filters"), depth)?;
            return Ok(if kind == "and" { Filter::And(filters) } else { Filter::Or(filters) });
        }
    };
    let ComparisonRequest { key, value } = object().read(members.into(), at)?;
    let values = read_values(value, &At::Member(at, "value"), operator)?;
    Ok(Filter::Comparison(Comparison { key, operator, values }))
}

fn read_filters(value: Value, at: &At<'_>, depth: usize) -> Result<Vec<Filter>, Error> {
    if depth >= DEPTH_MAX {
        return Err(Error::invalid(format!(
            "Invalid '{at}': filters are nested too deeply. Expected at most {DEPTH_MAX} levels."
        ))
        .at(at.to_string())
        .code("invalid_value"));
    }
    let element = custom(|value, at: &At<'_>| read_filter(value, at, depth + 1), filter_schema);
    array(element, 1, COMPARISONS_MAX).read(value, at)
}

fn read_values(value: Value, at: &At<'_>, operator: Operator) -> Result<Vec<Value>, Error> {
    let scalar = |value: Value, at: &At<'_>| match value {
        Value::Number(_) => Ok(value),
        Value::String(_) => string(0, VALUE_CHARS_MAX).read(value, at).map(Value::String),
        Value::Bool(_) if matches!(operator, Operator::Eq | Operator::Ne | Operator::In | Operator::Nin) => Ok(value),
        Value::Bool(_) => Err(wrong_type(at, "one of a string or decimal number", &value)),
        Value::Null | Value::Array(_) | Value::Object(_) => {
            Err(wrong_type(at, "one of a string, decimal number, or boolean", &value))
        }
    };
    match operator {
        Operator::In | Operator::Nin => {
            if !value.is_array() {
                return Err(wrong_type(at, "an array of strings or decimal numbers", &value));
            }
            array(custom(scalar, scalar_schema), 1, VALUES_MAX).read(value, at)
        }
        Operator::Eq | Operator::Ne | Operator::Gt | Operator::Gte | Operator::Lt | Operator::Lte => {
            Ok(vec![scalar(value, at)?])
        }
    }
}

/// The name of the published schema.
const SCHEMA: &str = "Filter";

fn scalar_schema(schemas: &mut SchemaGenerator) -> Value {
    json!({"anyOf": [string(0, VALUE_CHARS_MAX).schema(schemas), {"type": "number"}, {"type": "boolean"}]})
}

fn value_schema(schemas: &mut SchemaGenerator) -> Value {
    let scalar = scalar_schema(schemas);
    json!({"anyOf": [scalar, {"type": "array", "items": scalar, "minItems": 1, "maxItems": VALUES_MAX}]})
}

fn filters_schema(_: &mut SchemaGenerator) -> Value {
    let filter = json!({"$ref": format!("#/components/schemas/{SCHEMA}")});
    json!({"type": "array", "items": filter, "minItems": 1, "maxItems": COMPARISONS_MAX})
}

/// Returns the schema. It refers to itself, for nested filters.
fn filter_schema(schemas: &mut SchemaGenerator) -> Value {
    let variant = |types: &[&str], member: (&str, Value), other: Option<(&str, Value)>| {
        let mut required = vec!["type", member.0];
        let mut properties = json!({"type": {"type": "string", "enum": types}});
        properties[member.0] = member.1;
        if let Some((name, schema)) = other {
            required.push(name);
            properties[name] = schema;
        }
        json!({"type": "object", "properties": properties, "required": required, "additionalProperties": false})
    };
    if !schemas.definitions().contains_key(SCHEMA) {
        let key = string(1, KEY_CHARS_MAX).schema(schemas);
        let comparison = variant(&TYPES[..8], ("key", key), Some(("value", value_schema(schemas))));
        let compound = variant(&TYPES[8..], ("filters", filters_schema(schemas)), None);
        schemas.definitions_mut().insert(SCHEMA.to_owned(), json!({"anyOf": [comparison, compound]}));
    }
    json!({"$ref": format!("#/components/schemas/{SCHEMA}")})
}

#[cfg(test)]
mod tests {
    use super::super::attributes::attributes;
    use super::*;

    fn read(value: Value) -> Result<Filter, Error> {
        filter().read(value, &At::Member(&At::Root, "filters"))
    }

    fn matches(value: &Value, attributes_of_file: Value) -> bool {
        let attributes = attributes().read(attributes_of_file, &At::Root).unwrap();
        read(value.clone()).unwrap().matches(&attributes)
    }

    fn comparison(kind: &str, value: impl Into<Value>) -> Value {
        json!({"type": kind, "key": "k", "value": value.into()})
    }

    #[test]
    fn comparisons_compare_values_of_the_same_type() {
        for (kind, value, matching, others) in [
            ("eq", json!(2), vec![json!(2), json!(2.0)], vec![json!(3), json!("2"), json!(true)]),
            ("eq", json!("b"), vec![json!("b")], vec![json!("B"), json!("")]),
            ("eq", json!(true), vec![json!(true)], vec![json!(false), json!("true"), json!(1)]),
            ("ne", json!(2), vec![json!(3), json!("2")], vec![json!(2), json!(2.0)]),
            ("gt", json!(2), vec![json!(2.5), json!(3)], vec![json!(2), json!(1), json!("3")]),
            ("gte", json!("b"), vec![json!("b"), json!("c")], vec![json!("a"), json!(3)]),
            ("lt", json!(2), vec![json!(-1)], vec![json!(2), json!("1"), json!(false)]),
            ("lte", json!(2), vec![json!(2), json!(1)], vec![json!(2.1)]),
            ("in", json!([1, "x"]), vec![json!(1), json!("x")], vec![json!(2), json!("1")]),
            ("nin", json!([1, "x"]), vec![json!(2), json!("1")], vec![json!(1), json!("x")]),
        ] {
            let filter = comparison(kind, value);
            for attribute in matching {
                assert!(matches(&filter, json!({"k": attribute})), "{filter} {attribute}");
            }
            for attribute in others {
                assert!(!matches(&filter, json!({"k": attribute})), "{filter} {attribute}");
            }
        }
        let large = 9_007_199_254_740_993_u64;
        assert!(!matches(&comparison("eq", large), json!({"k": large - 1})), "integers are compared exactly");
    }

    #[test]
    fn a_missing_attribute_is_different_from_each_value() {
        for (kind, expected) in
            [("eq", false), ("ne", true), ("gt", false), ("gte", false), ("lt", false), ("lte", false)]
        {
            assert_eq!(matches(&comparison(kind, 1), json!({})), expected, "{kind}");
        }
        assert!(!matches(&comparison("in", json!([1])), json!({})));
        assert!(matches(&comparison("nin", json!([1])), json!({})));
    }

    #[test]
    fn filters_are_combined() {
        let (one, other) = (comparison("gte", 1), comparison("lt", 3));
        let and = json!({"type": "and", "filters": [one, other]});
        let or = json!({"type": "or", "filters": [comparison("eq", 7), and]});

        for (value, is_in_range) in [(0, false), (1, true), (2, true), (3, false)] {
            assert_eq!(matches(&and, json!({"k": value})), is_in_range, "{value}");
            assert_eq!(matches(&or, json!({"k": value})), is_in_range, "{value}");
        }
        assert!(matches(&or, json!({"k": 7})));
    }

    #[test]
    fn invalid_filters_are_rejected_with_the_parameter_name() {
        let nested = |depth: usize| {
            (1..depth).fold(comparison("eq", 1), |filter, _| json!({"type": "and", "filters": [filter]}))
        };
        let many = |count: usize| json!({"type": "or", "filters": vec![comparison("eq", 1); count]});
        for (filter, param) in [
            (json!([]), "filters"),
            (json!({"key": "k", "value": 1}), "filters.type"),
            (json!({"type": "like", "key": "k", "value": 1}), "filters.type"),
            (json!({"type": "eq", "key": "k"}), "filters.value"),
            (json!({"type": "eq", "key": "k", "value": 1, "x": 1}), "filters.x"),
            (json!({"type": "eq", "key": "k", "value": null}), "filters.value"),
            (json!({"type": "eq", "key": "k", "value": [1]}), "filters.value"),
            (json!({"type": "gt", "key": "k", "value": true}), "filters.value"),
            (json!({"type": "in", "key": "k", "value": 1}), "filters.value"),
            (json!({"type": "in", "key": "k", "value": []}), "filters.value"),
            (json!({"type": "in", "key": "k", "value": [[]]}), "filters.value[0]"),
            (json!({"type": "and", "filters": []}), "filters.filters"),
            (json!({"type": "and", "filters": [{"type": "eq", "key": 1, "value": 1}]}), "filters.filters[0].key"),
            (many(201), "filters.filters"),
            (json!({"type": "or", "filters": [many(200), many(1)]}), "filters"),
        ] {
            assert_eq!(read(filter.clone()).unwrap_err().param.as_deref(), Some(param), "{filter}");
        }
        assert!(read(nested(DEPTH_MAX)).is_ok());
        assert_eq!(read(nested(DEPTH_MAX + 1)).unwrap_err().code, Some("invalid_value"));
        assert!(read(many(200)).is_ok());
    }
}
