//! Extraction of texts: each format, and hostile files.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use assistd::retrieval::extract::{Error, Extractor, FileFormat, Limits, Rejected};
use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use proptest::prelude::*;
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

use crate::support::documents::{
    archive, compound_file, doc, doc_with_flags, docx, docx_with, pdf, pdf_with, pdf_with_objects, pptx, relationships,
    word_part,
};

fn extractor() -> Extractor {
    Extractor::new(PathBuf::from(env!("CARGO_BIN_EXE_assistd")), 2, Limits::default())
}

async fn extract(name: &str, bytes: &[u8]) -> Result<String, Rejected> {
    try_extract(&extractor(), name, bytes).await.unwrap()
}

async fn try_extract(extractor: &Extractor, name: &str, bytes: &[u8]) -> Result<Result<String, Rejected>, Error> {
    let bytes = Bytes::copy_from_slice(bytes);
    let pieces: Vec<Bytes> =
        (0..bytes.len()).step_by(64 * 1024).map(|at| bytes.slice(at..bytes.len().min(at + 64 * 1024))).collect();
    let open = || stream::iter(pieces.clone()).map(Ok).boxed();
    extractor.extract(FileFormat::of(name).unwrap(), bytes.len() as u64, &open).await
}

/// Asserts that a file is rejected with a message that has this part.
async fn rejected(name: &str, bytes: &[u8], is_unsupported: bool, part: &str) {
    let rejected = extract(name, bytes).await.unwrap_err();
    assert!(rejected.message.contains(part), "{name}: {rejected}");
    assert_eq!(rejected.is_unsupported, is_unsupported, "{name}: {rejected}");
}

#[tokio::test]
async fn each_format_is_read() {
    assert_eq!(extract("a.txt", b"Rome was not\r\nbuilt in a day.").await.unwrap(), "Rome was not\nbuilt in a day.");
    assert_eq!(extract("a.py", b"def f():\n\treturn 1\n").await.unwrap(), "def f():\n\treturn 1\n");
    assert_eq!(extract("a.html", b"<p>Rome<p>Paris").await.unwrap(), "Rome\n\nParis");
    assert_eq!(extract("a.docx", &docx(&["Rome & Paris", "second"])).await.unwrap(), "Rome & Paris\nsecond");
    assert_eq!(
        extract("a.pptx", &pptx(&[("First <slide>", "notes one"), ("Second", "notes two")])).await.unwrap(),
        "First <slide>\n\nnotes one\n\nSecond\n\nnotes two"
    );
    assert_eq!(
        extract("a.doc", &doc("Rome and naïve café — 你好\rsecond\r")).await.unwrap(),
        "Rome and naïve café — 你好\nsecond"
    );
    let text = extract("a.pdf", &pdf(&["Rome was not", "built in a day"])).await.unwrap();
    assert_eq!(text.split_whitespace().collect::<Vec<_>>().join(" "), "Rome was not built in a day");
}

#[tokio::test]
async fn a_word_document_is_read_with_everything_around_its_pages() {
    let cell = |text: &str| format!("<w:tc><w:tcPr/><w:p><w:r><w:t>{text}</w:t></w:r></w:p></w:tc>");
    let body = format!(
        "<w:p><w:pPr><w:tabs><w:tab w:val='left'/></w:tabs></w:pPr><w:r><w:t>one</w:t><w:tab/><w:t xml:space='preserve'>two </w:t>\
         <w:br/><w:t>three&#8212;&amp;&custom;</w:t></w:r><w:del><w:r><w:delText>deleted</w:delText></w:r></w:del></w:p>\
         <w:p/><w:tbl><w:tr>{}{}</w:tr><w:tr>{}{}</w:tr></w:tbl>\
         <w:p><w:r><w:instrText>PAGE</w:instrText><w:t><![CDATA[four]]></w:t></w:r></w:p>\
         <mc:AlternateContent><mc:Choice><w:p><w:r><w:t>box</w:t></w:r></w:p></mc:Choice><mc:Fallback><w:p><w:r><w:t>box</w:t></w:r></w:p></mc:Fallback></mc:AlternateContent>",
        cell("Name"),
        cell("Age"),
        cell("Ada"),
        cell("36"),
    );
    let text = |text: &str| format!("<w:p><w:r><w:t>{text}</w:t></w:r></w:p>");
    let header = word_part("hdr", &text("Header"));
    let parts = [
        ("header", header.as_str()),
        ("header", header.as_str()),
        ("footer", &word_part("ftr", &text("Footer"))),
        ("footnotes", &word_part("footnotes", &format!("<w:footnote>{}</w:footnote>", text("A note")))),
        ("comments", &word_part("comments", &format!("<w:comment>{}</w:comment>", text("A comment")))),
        ("image", "not read"),
    ];

    assert_eq!(
        extract("a.docx", &docx_with(&body, &parts)).await.unwrap(),
        "Header\n\none\ttwo \nthree—&\n\nName\tAge\nAda\t36\n\nfour\nbox\n\nFooter\n\nA note\n\nA comment"
    );
}

#[tokio::test]
async fn a_document_is_recognized_by_its_content() {
    assert_eq!(extract("a.doc", &docx(&["Rome"])).await.unwrap(), "Rome");
    assert_eq!(extract("a.docx", &doc("Rome and Paris")).await.unwrap(), "Rome and Paris");
    assert_eq!(extract("a.docx", &pdf(&["Rome"])).await.unwrap().trim(), "Rome");
    assert_eq!(extract("a.pdf", &[b"\n\njunk\n".as_slice(), &pdf(&["Rome"])].concat()).await.unwrap().trim(), "Rome");
    rejected("a.txt", &pdf(&["Rome"]), false, "it is not text but a PDF").await;
    rejected("a.docx", b"{\\rtf1 Rome}", true, "Rich Text Format: save it as").await;
    rejected("a.pdf", b"Rome", false, "none of the formats PDF, Word and PowerPoint").await;
    rejected("a.docx", &archive(&[("a.txt", "Rome")]), true, "ZIP archive").await;
    rejected("a.docx", &archive(&[("mimetype", "application/vnd.oasis.opendocument.text")]), true, "OpenDocument")
        .await;
    let root = relationships(&[("rId1", "officeDocument", "xl/workbook.xml")]);
    rejected("a.docx", &archive(&[("_rels/.rels", &root), ("xl/workbook.xml", "<workbook/>  ")]), true, "spreadsheet")
        .await;
    rejected("a.doc", &compound_file(&[("/Workbook", b"x")]), true, "spreadsheet").await;
    rejected("a.pptx", &compound_file(&[("/PowerPoint Document", b"x")]), true, "save it as .pptx").await;
}

#[tokio::test]
async fn files_without_text_are_rejected() {
    rejected("a.txt", b" \n\t ", false, "it contains no text").await;
    rejected("a.html", b"<script>x()</script><p> ", false, "it contains no text").await;
    rejected("a.docx", &docx(&[""]), false, "it contains no text").await;
    let scan = pdf_with(&["q 612 0 0 792 0 0 cm /Im1 Do Q".to_owned()], "");
    rejected("a.pdf", &scan, true, "PDF without text, such as a scan").await;
}

#[tokio::test]
async fn encrypted_files_are_rejected() {
    rejected("a.doc", &doc_with_flags("secret text", 0x0100), false, "protected by a password").await;
    rejected(
        "a.docx",
        &compound_file(&[("/EncryptedPackage", b"x"), ("/EncryptionInfo", b"x")]),
        false,
        "protected by a password",
    )
    .await;
    rejected("a.pdf", &encrypted_pdf("owner", "user"), false, "protected by a password").await;
    let readable = extract("a.pdf", &encrypted_pdf("owner", "")).await.unwrap();
    assert_eq!(readable.trim(), "Rome", "only changes need the password");
}

fn encrypted_pdf(owner: &str, user: &str) -> Vec<u8> {
    use pdf_extract::{Document, EncryptionState, EncryptionVersion, Object, Permissions, StringFormat};

    let mut document = Document::load_mem(&pdf(&["Rome"])).unwrap();
    let id = || Object::String(vec![7; 16], StringFormat::Hexadecimal);
    document.trailer.set("ID", Object::Array(vec![id(), id()]));
    let version = EncryptionVersion::V2 {
        document: &document,
        owner_password: owner,
        user_password: user,
        key_length: 128,
        permissions: Permissions::all(),
    };
    let state = EncryptionState::try_from(version).unwrap();
    document.encrypt(&state).unwrap();
    let mut bytes = Vec::new();
    document.save_to(&mut bytes).unwrap();
    bytes
}

#[tokio::test]
async fn damaged_files_are_rejected() {
    for (name, whole) in [
        ("a.pdf", pdf(&["Rome"])),
        ("a.docx", docx(&["Rome"])),
        ("a.pptx", pptx(&[("Rome", "x")])),
        ("a.doc", doc("Rome and Paris")),
    ] {
        for length in [10, whole.len() / 4, whole.len() / 2] {
            let Rejected { message, .. } = extract(name, &whole[..length]).await.unwrap_err();
            assert!(message.len() > 40, "{name} {length}: {message}");
        }
    }
}

/// A PDF whose forms draw themselves.
fn recursive_pdf() -> Vec<u8> {
    let form = "<</Type/XObject/Subtype/Form/BBox[0 0 9 9]/Resources<</XObject<</Fm 6 0 R>>>>/Length 6>>stream\n/Fm Do\nendstream";
    pdf_with_objects(&["/Fm Do".to_owned()], "/XObject<</Fm 6 0 R>>", &[form.to_owned()])
}

/// A PDF whose forms each draw the next one twice: two to the power of 40 forms.
fn exponential_pdf() -> Vec<u8> {
    let forms: Vec<String> = (0..40)
        .map(|index| {
            let next = 7 + index;
            format!("<</Type/XObject/Subtype/Form/BBox[0 0 9 9]/Resources<</XObject<</Fm {next} 0 R>>>>/Length 13>>stream\n/Fm Do /Fm Do\nendstream")
        })
        .collect();
    pdf_with_objects(&["/Fm Do".to_owned()], "/XObject<</Fm 6 0 R>>", &forms)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_files_are_rejected() {
    // Nesting that ends the process of a recursive parser.
    let nested = format!("<</Type/Catalog/Pages 2 0 R/X {}{}>>", "[".repeat(500_000), "]".repeat(500_000));
    let nested = String::from_utf8(pdf(&["Rome"])).unwrap().replacen("<</Type/Catalog/Pages 2 0 R>>", &nested, 1);
    let nested = extract("nested.pdf", nested.as_bytes()).await;
    assert!(nested.is_err() || nested.unwrap().contains("Rome"));
    let _ = extract("recursive.pdf", &recursive_pdf()).await;
    // A tree of pages that contains itself.
    let cyclic = String::from_utf8(pdf(&["Rome"])).unwrap().replace("/Kids[4 0 R ]", "/Kids[2 0 R ]");
    let _ = extract("cyclic.pdf", cyclic.as_bytes()).await;
    // The same part many times, together more than a package may have.
    let part = word_part("hdr", &format!("<w:p><w:r><w:t>{}</w:t></w:r></w:p>", " ".repeat(40 << 20)));
    let list: Vec<(&str, &str, &str)> = (0..100).map(|_| ("rId1", "header", "part.xml")).collect();
    let bomb = archive(&[
        ("_rels/.rels", &relationships(&[("rId1", "officeDocument", "word/document.xml")])),
        ("word/document.xml", &word_part("document", "")),
        ("word/_rels/document.xml.rels", &relationships(&list)),
        ("word/part.xml", &part),
    ]);
    assert!(bomb.len() < 1 << 20);
    rejected("bomb.docx", &bomb, false, "its parts have more than 512 MB").await;
    // More text than a file may have.
    let long = docx_with(&format!("<w:p><w:r><w:t>{}</w:t></w:r></w:p>", "a".repeat((64 << 20) + 1)), &[]);
    rejected("long.docx", &long, false, "more than 64 MB of text").await;
    rejected("long.txt", &vec![b'a'; (64 << 20) + 1], false, "more than 64 MB of text").await;
    // Entities that would expand to ten to the power of nine.
    let entities: Vec<String> =
        (1..10).map(|level| format!("<!ENTITY e{level} \"{}\">", format!("&e{};", level - 1).repeat(10))).collect();
    let document = word_part("document", "<w:body><w:p><w:r><w:t>a&e9;b</w:t></w:r></w:p></w:body>").replacen(
        "?>",
        &format!("?><!DOCTYPE x [<!ENTITY e0 \"ha\">{}]>", entities.concat()),
        1,
    );
    let expanding = archive(&[
        ("_rels/.rels", &relationships(&[("rId1", "officeDocument", "word/document.xml")])),
        ("word/document.xml", &document),
    ]);
    assert_eq!(extract("entities.docx", &expanding).await.unwrap(), "ab");
    let deep = docx_with(&format!("{}<w:p><w:r><w:t>x</w:t></w:r></w:p>", "<w:x>".repeat(1_000_000)), &[]);
    assert_eq!(extract("deep.docx", &deep).await.unwrap(), "x");
}

#[tokio::test]
async fn a_pdf_that_needs_too_much_time_or_memory_is_rejected() {
    let program = PathBuf::from(env!("CARGO_BIN_EXE_assistd"));
    let outcome = async |limits: Limits| {
        let extractor = Extractor::new(program.clone(), 1, limits);
        try_extract(&extractor, "a.pdf", &exponential_pdf()).await.unwrap().unwrap_err()
    };
    let lavish = 64 << 30;

    let slow = outcome(Limits { memory_bytes: lavish, cpu: Duration::from_secs(1), ..Limits::default() }).await;
    assert!(slow.message.contains("more than 1 seconds"), "{slow}");
    let late =
        outcome(Limits { memory_bytes: lavish, duration: Duration::from_millis(300), ..Limits::default() }).await;
    assert!(late.message.contains("more than 60 seconds"), "{late}");
    let large = outcome(Limits { memory_bytes: 300 << 20, ..Limits::default() }).await;
    assert!(large.message.contains("too much memory"), "{large}");
}

#[tokio::test]
async fn a_child_process_ends_when_its_parent_has_ended() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_assistd"))
        .args(["parse-file", "document", "--memory-bytes-max=68719476736", "--cpu-s-max=60"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    let bytes = exponential_pdf();
    input.write_all(&(bytes.len() as u64).to_le_bytes()).await.unwrap();
    input.write_all(&bytes).await.unwrap();

    // As the operating system does when it ends the parent.
    drop(input);

    assert_eq!(child.wait().await.unwrap().code(), Some(4));
}

#[tokio::test]
async fn a_program_that_cannot_run_is_not_the_fault_of_the_file() {
    let missing = Extractor::new(PathBuf::from("/does/not/exist"), 1, Limits::default());
    assert!(matches!(try_extract(&missing, "a.pdf", b"x").await, Err(Error::Process(_))));
    let failing = Extractor::new(PathBuf::from("/bin/false"), 1, Limits::default());
    assert!(matches!(try_extract(&failing, "a.pdf", &pdf(&["Rome"])).await, Err(Error::Process(_))));
    let open = || stream::iter([Ok(Bytes::from_static(b"%PDF")), Err(std::io::Error::other("gone"))]).boxed();
    assert!(matches!(extractor().extract(FileFormat::Pdf, 100, &open).await, Err(Error::Read(_))));
    assert!(matches!(extractor().extract(FileFormat::Text, 100, &open).await, Err(Error::Read(_))));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]
    #[test]
    fn damaged_and_random_files_have_an_outcome(
        format in 0_usize..5,
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..30),
        random in prop::collection::vec(any::<u8>(), 0..300),
        is_random in any::<bool>(),
    ) {
        let (name, mut bytes) = match format {
            0 => ("a.pdf", pdf(&["Rome", "Paris"])),
            1 => ("a.docx", docx(&["Rome"])),
            2 => ("a.pptx", pptx(&[("Rome", "Paris")])),
            3 => ("a.doc", doc("Rome and Paris")),
            _ => ("a.html", b"<title>x</title><p>Rome &amp; <b>Paris</b><script>x</script>".to_vec()),
        };
        if is_random {
            bytes.truncate(8);
            bytes.extend_from_slice(&random);
        } else {
            for (index, byte) in changes {
                let index = index.index(bytes.len());
                bytes[index] = byte;
            }
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        match runtime.block_on(try_extract(&extractor(), name, &bytes)).unwrap() {
            Ok(text) => prop_assert!(!text.trim().is_empty()),
            Err(rejected) => prop_assert!(rejected.message.starts_with("The file "), "{}", rejected),
        }
    }
}

#[tokio::test]
async fn an_svg_image_is_rendered() {
    let svg = b"<?xml version='1.0'?><!DOCTYPE svg><svg xmlns='http://www.w3.org/2000/svg' width='20' height='10'>\
                <rect width='10' height='10' fill='red'/></svg>";

    let png = extractor().render_svg(Bytes::from_static(svg)).await.unwrap().unwrap();

    let image = image::load_from_memory(&png).unwrap().to_rgb8();
    assert_eq!(image.dimensions(), (1600, 800));
    assert_eq!((image.get_pixel(100, 400).0, image.get_pixel(1500, 400).0), ([255, 0, 0], [255, 255, 255]));
}

#[tokio::test]
async fn an_svg_image_that_cannot_be_rendered_is_rejected() {
    let svg = |inner: &str| format!("<svg xmlns='http://www.w3.org/2000/svg' width='20' height='10'>{inner}</svg>");
    let mut uses = "<rect id='u0' width='1' height='1'/>".to_owned();
    for level in 1..40 {
        let _ = write!(uses, "<g id='u{level}'>{}</g>", format!("<use href='#u{}'/>", level - 1).repeat(10));
    }
    let mut entities = "<!DOCTYPE svg [<!ENTITY a0 'x'>".to_owned();
    for level in 1..40 {
        let _ = write!(entities, "<!ENTITY a{level} '{}'>", format!("&a{};", level - 1).repeat(10));
    }
    let slow = "<filter id='f'>".to_owned() + &"<feTurbulence numOctaves='200'/>".repeat(500) + "</filter>";
    let limits = Limits { memory_bytes: 512 << 20, cpu: Duration::from_secs(2), duration: Duration::from_secs(20) };
    let extractor = Extractor::new(PathBuf::from(env!("CARGO_BIN_EXE_assistd")), 2, limits);
    for (name, content) in [
        ("text", svg("<text>Hello</text>")),
        ("a picture", svg("<image href='/etc/passwd'/>")),
        ("not SVG", "Hello".to_owned()),
        ("HTML", "<html><body/></html>".to_owned()),
        ("no size", "<svg xmlns='http://www.w3.org/2000/svg' width='0' height='0'/>".to_owned()),
        ("deep", svg(&"<g>".repeat(500_000))),
        ("deep and closed", svg(&("<g>".repeat(100_000) + &"</g>".repeat(100_000)))),
        ("many copies", svg(&uses)),
        (
            "many entities",
            entities + "]><svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'><desc>&a39;</desc></svg>",
        ),
        ("slow filters", svg(&(slow + "<rect width='20' height='10' filter='url(#f)'/>"))),
    ] {
        let rendered = extractor.render_svg(Bytes::from(content)).await.unwrap();

        assert!(rendered.is_err(), "{name}: {} bytes", rendered.unwrap_or_default().len());
    }
}
