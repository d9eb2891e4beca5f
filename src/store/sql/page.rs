//! Pages of lists: keyset pagination, with a size limit in bytes.

use futures_util::TryStreamExt;
use sqlx::{QueryBuilder, Row as _};

use super::{Backend, Db, Row};
use crate::api::page::{Order, Page, PageQuery};
use crate::api::{FileBatchId, Scope, ThreadId, VectorStoreId};
use crate::store::Error;

/// Maximum size of a page, in bytes. A larger page is cut, and the next page continues after it.
const PAGE_BYTES_MAX: usize = 32 * 1024 * 1024;

/// A list: the table, the columns to read, and the filter.
pub(super) struct List<'a> {
    pub table: &'static str,
    pub columns: &'static str,
    /// The column whose size counts towards the limit.
    pub body: &'static str,
    /// The filter: pairs of a column and its value. [`project`] comes first, unless the list has a parent.
    pub filter: &'a [(&'static str, &'a str)],
    /// What the elements belong to.
    pub parent: Option<Parent<'a>>,
}

/// What the elements of a list belong to.
#[derive(Clone, Copy)]
pub(super) enum Parent<'a> {
    Thread(&'a Scope, &'a ThreadId),
    VectorStore(&'a Scope, &'a VectorStoreId),
    Batch(&'a Scope, &'a VectorStoreId, &'a FileBatchId),
}

/// A condition besides the filter of a list.
pub(super) enum Condition<'a> {
    /// The column has one of these values.
    OneOf(&'static str, &'a [String]),
    /// The column compares with a number: column, operator, number.
    Compare(&'static str, &'static str, i64),
    /// The column is null or greater than a number.
    NullOrAfter(&'static str, i64),
    /// A condition without parameters.
    Fixed(&'static str),
}

/// The condition for the elements of a thread, with question marks for its ID and the project.
const IN_THREAD: &str = " and thread_id = (select id from threads where id = ? and project_id = ?)";
/// The condition for the files of a vector store, with question marks for its ID and the project.
const IN_VECTOR_STORE: &str =
    " and vector_store_id = (select id from vector_stores where status = 'live' and id = ? and project_id = ?)";
/// The condition for the files of a batch, with a question mark for its ID, the ID of the vector store and the project.
const IN_BATCH: &str = concat!(
    " and id in (",
    json_texts!(
        "(select store_file_ids from vector_store_file_batches
          where id = ? and vector_store_id = (
              select id from vector_stores where status = 'live' and id = ? and project_id = ?))"
    ),
    ")"
);

/// Returns the filter for the objects of a project.
pub(super) fn project(scope: &Scope) -> (&'static str, &str) {
    ("project_id", scope.as_str())
}

/// Reads one page, and one more element to find out whether there are more.
pub(super) async fn page(db: &Backend, list: &List<'_>, query: &PageQuery) -> Result<Page<Row>, Error> {
    page_where(db, list, &[], query).await
}

/// Reads one page of the elements that meet the conditions. The cursors need not meet them.
pub(super) async fn page_where(
    db: &Backend,
    list: &List<'_>,
    conditions: &[Condition<'_>],
    query: &PageQuery,
) -> Result<Page<Row>, Error> {
    let after = cursor(db, list, query.after.as_deref()).await?;
    let before = cursor(db, list, query.before.as_deref()).await?;

    // With only `before`, the page ends at the cursor: it is read backwards and then reversed.
    let backwards = before.is_some() && after.is_none();
    let newest_first = (query.order == Order::Descending) != backwards;
    let mut sql = filtered(list.columns, list);
    for condition in conditions {
        add_condition(&mut sql, condition);
    }
    for (cursor, is_after) in [(after, true), (before, false)] {
        let Some((created_at, seq)) = cursor else { continue };
        let smaller = (query.order == Order::Descending) == is_after;
        sql.push(if smaller { " and (created_at, seq) < (" } else { " and (created_at, seq) > (" });
        sql.push_bind(created_at).push(", ").push_bind(seq).push(")");
    }
    sql.push(if newest_first { " order by created_at desc, seq desc" } else { " order by created_at, seq" });
    sql.push(" limit ").push_bind(i64::from(query.limit) + 1);

    let mut data: Vec<Row> = Vec::new();
    let mut has_more = false;
    {
        let query_all = sql.build();
        let mut rows = query_all.fetch(db.reader());
        let mut bytes = 0;
        while let Some(row) = rows.try_next().await? {
            bytes += row.try_get::<&str, _>(list.body)?.len();
            if data.len() == query.limit as usize || !data.is_empty() && bytes > PAGE_BYTES_MAX {
                has_more = true;
                if data.len() < query.limit as usize {
                    // The connection is closed instead of reading the remaining rows.
                    break;
                }
                continue;
            }
            data.push(row);
        }
    }
    if backwards {
        data.reverse();
    }
    Ok(Page { data, has_more })
}

/// Converts the rows of a page. Skips unreadable rows.
pub(super) fn read<T>(
    db: &Backend,
    rows: &Page<Row>,
    read: impl Fn(&Row) -> Result<T, Error>,
) -> Result<Page<T>, Error> {
    let data = db.unreadable.skip_all(rows.data.iter().map(read))?;
    // Without a last element, there is no cursor for the next page.
    let has_more = rows.has_more && !data.is_empty();
    Ok(Page { data, has_more })
}

async fn cursor(db: &Backend, list: &List<'_>, id: Option<&str>) -> Result<Option<(i64, i64)>, Error> {
    let Some(id) = id else { return Ok(None) };
    if id.contains('\0') {
        return Err(Error::NoCursor(id.to_owned()));
    }
    let mut sql = filtered("created_at, seq", list);
    sql.push(" and id = ").push_bind(id);
    let cursor: Option<(i64, i64)> = sql.build_query_as().fetch_optional(db.reader()).await?;
    cursor.map_or_else(|| Err(Error::NoCursor(id.to_owned())), |cursor| Ok(Some(cursor)))
}

fn filtered(columns: &str, list: &List<'_>) -> QueryBuilder<Db> {
    let mut sql = QueryBuilder::new("select ");
    sql.push(columns).push(" from ").push(list.table).push(" where true");
    for (column, value) in list.filter {
        sql.push(" and ").push(column).push(" = ").push_bind((*value).to_owned());
    }
    if let Some(parent) = list.parent {
        // The project of the parent, and not that of the elements: Postgres would multiply the selectivities of both
        // columns, expect few elements, and sort all elements of a long thread instead of reading the index backwards.
        let (condition, values) = match parent {
            Parent::Thread(scope, id) => (IN_THREAD, vec![id.as_str(), scope.as_str()]),
            Parent::VectorStore(scope, id) => (IN_VECTOR_STORE, vec![id.as_str(), scope.as_str()]),
            Parent::Batch(scope, store, id) => (IN_BATCH, vec![id.as_str(), store.as_str(), scope.as_str()]),
        };
        let mut parts = condition.split('?');
        sql.push(parts.next().unwrap_or_default());
        for (part, value) in parts.zip(values) {
            sql.push_bind(value.to_owned()).push(part);
        }
    }
    sql
}

fn add_condition(sql: &mut QueryBuilder<Db>, condition: &Condition<'_>) {
    match condition {
        Condition::OneOf(column, values) => {
            sql.push(" and ").push(column).push(" in (");
            let mut listed = sql.separated(", ");
            for value in *values {
                listed.push_bind(value.clone());
            }
            sql.push(")");
        }
        Condition::Compare(column, operator, number) => {
            sql.push(" and ").push(column).push(operator).push_bind(*number);
        }
        Condition::NullOrAfter(column, number) => {
            sql.push(" and (").push(column).push(" is null or ").push(column).push(" > ").push_bind(*number).push(")");
        }
        Condition::Fixed(condition) => {
            sql.push(" and ").push(condition);
        }
    }
}
