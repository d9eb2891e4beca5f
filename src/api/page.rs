//! Pagination: the query of a list request, and its page.

use schemars::JsonSchema;
use serde::Serialize;

use super::error::Error;
use super::rule::{At, out_of_range, unsupported_value};

/// Maximum number of elements of a page.
pub const LIMIT_MAX: u32 = 100;
/// Default number of elements of a page.
pub const LIMIT_DEFAULT: u32 = 20;

/// The order of a list, by creation time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// Oldest first.
    Ascending,
    /// Newest first (the default).
    Descending,
}

/// The query of a list request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PageQuery {
    /// Maximum number of elements, 1 to 100; of files, 1 to 10,000.
    pub limit: u32,
    /// The order of the list.
    pub order: Order,
    /// The ID of the element before the page.
    pub after: Option<String>,
    /// The ID of the element after the page.
    pub before: Option<String>,
}

impl Default for PageQuery {
    fn default() -> Self {
        Self { limit: LIMIT_DEFAULT, order: Order::Descending, after: None, before: None }
    }
}

impl PageQuery {
    /// Parses `limit`, `order`, `after` and `before`, of which `self` has the defaults; ignores other parameters. An empty
    /// value means that the parameter is not given.
    ///
    /// # Errors
    /// 400 if `limit` or `order` is invalid.
    pub fn parse<'a>(self, parameters: impl Iterator<Item = (&'a str, &'a str)>) -> Result<Self, Error> {
        self.parse_with_limit(LIMIT_MAX, parameters)
    }

    /// Like [`PageQuery::parse`], for a list whose `limit` can be up to `limit_max`.
    ///
    /// # Errors
    /// 400 if `limit` or `order` is invalid.
    pub fn parse_with_limit<'a>(
        self,
        limit_max: u32,
        parameters: impl Iterator<Item = (&'a str, &'a str)>,
    ) -> Result<Self, Error> {
        let mut query = self;
        for (name, value) in parameters.filter(|(_, value)| !value.is_empty()) {
            match name {
                "limit" => query.limit = limit(value, limit_max)?,
                "order" => query.order = order(value)?,
                "after" => query.after = Some(value.to_owned()),
                "before" => query.before = Some(value.to_owned()),
                _ => {}
            }
        }
        Ok(query)
    }
}

fn limit(text: &str, max: u32) -> Result<u32, Error> {
    let at = At::Member(&At::Root, "limit");
    let Ok(number) = text.parse::<i64>() else {
        return Err(Error::invalid(format!(
            "Invalid type for 'limit': expected an integer, but got a string instead: '{text}'."
        ))
        .at("limit")
        .code("invalid_type"));
    };
    match u32::try_from(number) {
        Ok(limit) if (1..=max).contains(&limit) => Ok(limit),
        _ => Err(out_of_range(&at, "integer", &number, number > 0, 1, max)),
    }
}

fn order(text: &str) -> Result<Order, Error> {
    match text {
        "asc" => Ok(Order::Ascending),
        "desc" => Ok(Order::Descending),
        other => Err(unsupported_value(&At::Member(&At::Root, "order"), other, &["asc", "desc"])),
    }
}

/// A page of a list, in list order.
#[derive(Debug, Clone, PartialEq)]
pub struct Page<T> {
    /// The elements.
    pub data: Vec<T>,
    /// Whether there are more elements after the page (with `before`: before the page).
    pub has_more: bool,
}

impl<T> Page<T> {
    /// Converts each element.
    ///
    /// # Errors
    /// The first error of `convert`.
    pub fn try_map<U, E>(self, convert: impl FnMut(T) -> Result<U, E>) -> Result<Page<U>, E> {
        Ok(Page { data: self.data.into_iter().map(convert).collect::<Result<_, E>>()?, has_more: self.has_more })
    }
}

/// The wire form of a [`Page`].
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(inline)]
pub struct List<T> {
    #[schemars(extend("const" = "list"))]
    object: &'static str,
    data: Vec<T>,
    first_id: Option<String>,
    last_id: Option<String>,
    has_more: bool,
}

impl<T> List<T> {
    /// Creates a list object.
    pub fn new(data: Vec<T>, first_id: Option<&str>, last_id: Option<&str>, has_more: bool) -> Self {
        Self {
            object: "list",
            data,
            first_id: first_id.map(str::to_owned),
            last_id: last_id.map(str::to_owned),
            has_more,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(parameters: &[(&str, &str)]) -> Result<PageQuery, String> {
        PageQuery::default().parse(parameters.iter().copied()).map_err(|error| error.message)
    }

    #[test]
    fn a_query_without_parameters_requests_the_newest_twenty() {
        assert_eq!(parse(&[("api-version", "x")]), Ok(PageQuery::default()));
        assert_eq!(parse(&["limit", "order", "after", "before"].map(|name| (name, ""))), Ok(PageQuery::default()));
    }

    #[test]
    fn limits_outside_1_to_100_are_rejected_with_the_limit() {
        assert_eq!(
            parse(&[("limit", "101")]),
            Err("Invalid 'limit': integer above maximum value. Expected a value <= 100, but got 101 instead.".into())
        );
        assert_eq!(
            parse(&[("limit", "0")]),
            Err("Invalid 'limit': integer below minimum value. Expected a value >= 1, but got 0 instead.".into())
        );
    }

    #[test]
    fn an_unknown_order_is_rejected_with_the_supported_values() {
        assert_eq!(
            parse(&[("order", "up")]),
            Err("Invalid value: 'up'. Supported values are: 'asc' and 'desc'.".into())
        );
    }
}
