//! The file name extensions that can be searched.

use crate::api::error::Error;

/// The extensions that the service's file search supported, in lowercase.
///
/// Source: the guide "File Search", supported files.
const SUPPORTED: [&str; 21] = [
    "c", "cpp", "cs", "css", "doc", "docx", "go", "html", "java", "js", "json", "md", "pdf", "php", "pptx", "py", "rb",
    "sh", "tex", "ts", "txt",
];

/// Returns the extension of a file name in lowercase, without the dot; `None` if it has none.
#[must_use]
pub fn extension(filename: &str) -> Option<String> {
    let name = filename.rsplit(['/', '\\']).next().unwrap_or(filename);
    let (stem, extension) = name.rsplit_once('.')?;
    (!stem.is_empty() && !extension.is_empty()).then(|| extension.to_lowercase())
}

/// Returns whether the text of a file with this name can be searched. Case does not matter.
#[must_use]
pub fn is_supported(filename: &str) -> bool {
    extension(filename).is_some_and(|extension| SUPPORTED.contains(&extension.as_str()))
}

/// Checks that the text of files with these names can be searched.
///
/// # Errors
/// 400 with the extensions that are not supported.
///
/// Source: a quoted 400 of the service. Differs: it refers to the service's documentation for the list.
pub fn check_supported<'a>(filenames: impl IntoIterator<Item = &'a str>) -> Result<(), Error> {
    let mut unsupported: Vec<String> = Vec::new();
    for filename in filenames.into_iter().filter(|filename| !is_supported(filename)) {
        let name = extension(filename).map_or_else(|| "none".to_owned(), |extension| format!(".{extension}"));
        if !unsupported.contains(&name) {
            unsupported.push(name);
        }
    }
    if unsupported.is_empty() {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "Files with extensions [{}] are not supported for retrieval. Supported extensions: {}.",
        unsupported.join(", "),
        SUPPORTED.join(", ")
    ))
    .at("file_ids")
    .code("unsupported_file"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extensions_are_compared_without_case() {
        for supported in ["a.txt", "A.TXT", "archive.tar.md", "dir.d/a.PDF", ".hidden.py"] {
            assert!(is_supported(supported), "{supported}");
        }
        for unsupported in ["a.csv", "txt", ".txt", "a.", "", "a.txt/b", "a.txt "] {
            assert!(!is_supported(unsupported), "{unsupported}");
        }
    }

    #[test]
    fn the_error_names_each_unsupported_extension_once() {
        let error = check_supported(["a.csv", "b.txt", "c.CSV", "d"]).unwrap_err();

        assert_eq!(
            error.message,
            "Files with extensions [.csv, none] are not supported for retrieval. Supported extensions: c, cpp, cs, css, \
             doc, docx, go, html, java, js, json, md, pdf, php, pptx, py, rb, sh, tex, ts, txt."
        );
        assert_eq!((error.param.as_deref(), error.code), (Some("file_ids"), Some("unsupported_file")));
        assert!(check_supported(["a.txt"]).is_ok());
    }
}
