//! Pages of lists: keyset, never offset.

use sqlx::QueryBuilder;

use super::{Backend, Db, Row};
use crate::api::page::{Order, Page, PageQuery};
use crate::store::Error;

/// Which list: the columns to give, the table, and the rows that belong to the list.
pub(super) struct List<'a> {
    pub table: &'static str,
    pub columns: &'static str,
    /// Pairs of a column and the value that it must have.
    pub scope: &'a [(&'static str, &'a str)],
}

/// Reads one page. One element more than asked for tells whether the list goes on.
pub(super) async fn page(db: &Backend, list: &List<'_>, query: &PageQuery) -> Result<Page<Row>, Error> {
    let after = cursor(db, list, query.after.as_deref()).await?;
    let before = cursor(db, list, query.before.as_deref()).await?;

    // With `before` alone, the page is the one that ends at the cursor: it is read backwards and turned round.
    let backwards = before.is_some() && after.is_none();
    let newest_first = (query.order == Order::Descending) != backwards;
    let mut sql = scoped(list.columns, list);
    for (place, is_after) in [(after, true), (before, false)] {
        let Some((created_at, seq)) = place else { continue };
        let smaller = (query.order == Order::Descending) == is_after;
        sql.push(if smaller { " and (created_at, seq) < (" } else { " and (created_at, seq) > (" });
        sql.push_bind(created_at).push(", ").push_bind(seq).push(")");
    }
    sql.push(if newest_first { " order by created_at desc, seq desc" } else { " order by created_at, seq" });
    sql.push(" limit ").push_bind(i64::from(query.limit) + 1);

    let mut data = sql.build().fetch_all(db.reader()).await?;
    let has_more = data.len() > query.limit as usize;
    data.truncate(query.limit as usize);
    if backwards {
        data.reverse();
    }
    Ok(Page { data, has_more })
}

async fn cursor(db: &Backend, list: &List<'_>, id: Option<&str>) -> Result<Option<(i64, i64)>, Error> {
    let Some(id) = id else { return Ok(None) };
    if id.contains('\0') {
        return Err(Error::NoCursor(id.to_owned()));
    }
    let mut sql = scoped("created_at, seq", list);
    sql.push(" and id = ").push_bind(id);
    let place: Option<(i64, i64)> = sql.build_query_as().fetch_optional(db.reader()).await?;
    place.map_or_else(|| Err(Error::NoCursor(id.to_owned())), |place| Ok(Some(place)))
}

fn scoped(columns: &str, list: &List<'_>) -> QueryBuilder<Db> {
    let mut sql = QueryBuilder::new("select ");
    sql.push(columns).push(" from ").push(list.table).push(" where true");
    for (column, value) in list.scope {
        sql.push(" and ").push(column).push(" = ").push_bind((*value).to_owned());
    }
    sql
}
