//! The rules of arrays and objects.

use schemars::SchemaGenerator;
use serde_json::{Map, Value, json};

use super::{At, Error, Request, Rule, missing, unsupported_value, wrong_type};

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
