use assistd::api::tool::WrittenFile;
use assistd::api::{CodeSessionId, FileId};

use super::{Database, ids, scope, thread};
use crate::both_stores;
use crate::support::run::NOTHING;

both_stores!(files_of_a_session_are_not_stored_after_another_has_begun, async |database: Database| {
    let store = database.open().await;
    let thread = thread();
    store.create_thread(&scope(), &thread, &[], &NOTHING).await.unwrap();
    let (first, second): (CodeSessionId, CodeSessionId) = (ids().generate(), ids().generate());
    let file = |path: &str| WrittenFile { path: path.to_owned(), file_id: ids().generate::<FileId>() };
    let written = [file("a"), file("b")];

    store.open_code_session(&scope(), &thread.id, &first).await.unwrap();
    store.set_code_files(&scope(), &thread.id, &first, &written).await.unwrap();
    store.open_code_session(&scope(), &thread.id, &second).await.unwrap();
    // The server of the first session was frozen, and does not know that the other one has begun.
    store.set_code_files(&scope(), &thread.id, &first, &[file("a"), file("c")]).await.unwrap();
    assert_eq!(store.code_files(&scope(), &thread.id).await.unwrap(), written);

    let newer = file("a");
    store.set_code_files(&scope(), &thread.id, &second, std::slice::from_ref(&newer)).await.unwrap();
    assert_eq!(store.code_files(&scope(), &thread.id).await.unwrap(), [newer, written[1].clone()]);
});
