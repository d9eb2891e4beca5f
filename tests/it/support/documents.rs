//! Documents of the formats that `file_search` reads, made for tests.

use std::io::{Cursor, Write as _};

use zip::ZipWriter;
use zip::write::SimpleFileOptions;

/// A ZIP archive with these files.
pub fn archive(files: &[(&str, &str)]) -> Vec<u8> {
    let mut archive = ZipWriter::new(Cursor::new(Vec::new()));
    for (name, content) in files {
        archive.start_file(*name, SimpleFileOptions::default()).unwrap();
        archive.write_all(content.as_bytes()).unwrap();
    }
    archive.finish().unwrap().into_inner()
}

/// The relationships of a part: ID, type, target.
pub fn relationships(list: &[(&str, &str, &str)]) -> String {
    let list: Vec<String> = list
        .iter()
        .map(|(id, kind, target)| {
            format!(
                r#"<Relationship Id="{id}" Target="{target}" Type="http://schemas.openxmlformats.org/officeDocument/2006/relationships/{kind}"/>"#
            )
        })
        .collect();
    format!(
        r#"<?xml version="1.0" encoding="UTF-8"?><Relationships xmlns="http://schemas.openxmlformats.org/package/2006/relationships">{}</Relationships>"#,
        list.concat()
    )
}

/// A `.docx` file with this body, and further parts: type of the relationship, content.
pub fn docx_with(body: &str, parts: &[(&str, &str)]) -> Vec<u8> {
    let root = relationships(&[("rId1", "officeDocument", "word/document.xml")]);
    let document = word_part("document", &format!("<w:body>{body}</w:body>"));
    let names: Vec<(String, String)> =
        (0..parts.len()).map(|index| (format!("rId{index}"), format!("part{index}.xml"))).collect();
    let list: Vec<(&str, &str, &str)> =
        parts.iter().zip(&names).map(|((kind, _), (id, name))| (id.as_str(), *kind, name.as_str())).collect();
    let list = relationships(&list);
    let paths: Vec<String> = names.iter().map(|(_, name)| format!("word/{name}")).collect();
    let mut files = vec![
        ("_rels/.rels", root.as_str()),
        ("word/document.xml", document.as_str()),
        ("word/_rels/document.xml.rels", list.as_str()),
    ];
    files.extend(paths.iter().zip(parts).map(|(path, (_, content))| (path.as_str(), *content)));
    archive(&files)
}

/// A part of a Word document.
pub fn word_part(root: &str, content: &str) -> String {
    format!(
        r#"<?xml version="1.0" encoding="UTF-8" standalone="yes"?><w:{root} xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main" xmlns:mc="http://schemas.openxmlformats.org/markup-compatibility/2006">{content}</w:{root}>"#
    )
}

/// A `.docx` file with these paragraphs.
pub fn docx(paragraphs: &[&str]) -> Vec<u8> {
    let body: Vec<String> =
        paragraphs.iter().map(|text| format!("<w:p><w:r><w:t>{}</w:t></w:r></w:p>", escaped(text))).collect();
    docx_with(&body.concat(), &[])
}

/// A `.pptx` file with these slides, of which each has a text and notes. They are stored in reverse order.
pub fn pptx(slides: &[(&str, &str)]) -> Vec<u8> {
    let count = slides.len();
    let mut files: Vec<(String, String)> =
        vec![("_rels/.rels".to_owned(), relationships(&[("rId1", "officeDocument", "/ppt/presentation.xml")]))];
    let ids: Vec<String> =
        (0..count).map(|index| format!(r#"<p:sldId id="{}" r:id="rId{index}"/>"#, 256 + index)).collect();
    let spaces = r#"xmlns:a="http://schemas.openxmlformats.org/drawingml/2006/main" xmlns:p="http://schemas.openxmlformats.org/presentationml/2006/main" xmlns:r="http://schemas.openxmlformats.org/officeDocument/2006/relationships""#;
    files.push((
        "ppt/presentation.xml".to_owned(),
        format!("<p:presentation {spaces}><p:sldIdLst>{}</p:sldIdLst></p:presentation>", ids.concat()),
    ));
    let mut list = Vec::new();
    for (index, (text, notes)) in slides.iter().enumerate() {
        let number = count - index;
        list.push((format!("rId{index}"), format!("slides/slide{number}.xml")));
        let shape = |text: &str, field: &str| {
            format!(
                "<p:sp><p:txBody><a:bodyPr/><a:p><a:pPr><a:tabLst><a:tab pos=\"1\"/></a:tabLst></a:pPr><a:r><a:t>{}</a:t></a:r></a:p>{field}</p:txBody></p:sp>",
                escaped(text)
            )
        };
        let field = r#"<a:p><a:fld type="slidenum" id="{0}"><a:t>77</a:t></a:fld></a:p>"#;
        files
            .push((format!("ppt/slides/slide{number}.xml"), format!("<p:sld {spaces}>{}</p:sld>", shape(text, field))));
        files.push((
            format!("ppt/notesSlides/notes{number}.xml"),
            format!("<p:notes {spaces}>{}</p:notes>", shape(notes, "")),
        ));
        files.push((
            format!("ppt/slides/_rels/slide{number}.xml.rels"),
            relationships(&[("rId1", "notesSlide", &format!("../notesSlides/notes{number}.xml"))]),
        ));
    }
    let list: Vec<(&str, &str, &str)> =
        list.iter().map(|(id, target)| (id.as_str(), "slide", target.as_str())).collect();
    files.push(("ppt/_rels/presentation.xml.rels".to_owned(), relationships(&list)));
    let files: Vec<(&str, &str)> = files.iter().map(|(name, content)| (name.as_str(), content.as_str())).collect();
    archive(&files)
}

/// A `.doc` file with this text, whose first half has one byte for each character, and the second half two.
pub fn doc(text: &str) -> Vec<u8> {
    doc_with_flags(text, 0)
}

/// The same, with these flags in its header.
pub fn doc_with_flags(text: &str, flags: u16) -> Vec<u8> {
    const TEXT_AT: usize = 0x800;
    let half = text.chars().count() / 2;
    let (compressed, _, _) = encoding_rs::WINDOWS_1252.encode(&text[..text.char_indices().nth(half).unwrap().0]);
    let wide: Vec<u16> = text.chars().skip(half).collect::<String>().encode_utf16().collect();
    let wide_at = (TEXT_AT + compressed.len()).next_multiple_of(2);
    let mut document = vec![0; TEXT_AT];
    document.extend_from_slice(&compressed);
    document.resize(wide_at, 0);
    document.extend(wide.iter().flat_map(|unit| unit.to_le_bytes()));
    let mut pieces = Vec::new();
    let positions = [0, compressed.len(), compressed.len() + wide.len()];
    for position in positions {
        pieces.extend_from_slice(&u32::try_from(position).unwrap().to_le_bytes());
    }
    for position in [u32::try_from(TEXT_AT * 2).unwrap() | 0x4000_0000, u32::try_from(wide_at).unwrap()] {
        pieces.extend_from_slice(&[0, 0]);
        pieces.extend_from_slice(&position.to_le_bytes());
        pieces.extend_from_slice(&[0, 0]);
    }
    // A change of properties, which is skipped, and then the table.
    let mut table = vec![0xAA; 8];
    let start = table.len();
    table.extend_from_slice(&[1, 2, 0, 0xFF, 0xFF, 2]);
    table.extend_from_slice(&u32::try_from(pieces.len()).unwrap().to_le_bytes());
    table.extend_from_slice(&pieces);
    document[0..2].copy_from_slice(&0xA5EC_u16.to_le_bytes());
    document[2..4].copy_from_slice(&0x00C1_u16.to_le_bytes());
    document[0x0A..0x0C].copy_from_slice(&(flags | 0x0200).to_le_bytes());
    document[0x01A2..0x01A6].copy_from_slice(&u32::try_from(start).unwrap().to_le_bytes());
    document[0x01A6..0x01AA].copy_from_slice(&u32::try_from(table.len() - start).unwrap().to_le_bytes());
    compound_file(&[("/WordDocument", &document), ("/1Table", &table)])
}

/// A compound file with these streams.
pub fn compound_file(streams: &[(&str, &[u8])]) -> Vec<u8> {
    let mut file = cfb::CompoundFile::create(Cursor::new(Vec::new())).unwrap();
    for (name, content) in streams {
        file.create_stream(name).unwrap().write_all(content).unwrap();
    }
    file.flush().unwrap();
    file.into_inner().into_inner()
}

/// A PDF with these pages, each with one line.
pub fn pdf(pages: &[&str]) -> Vec<u8> {
    let contents: Vec<String> = pages
        .iter()
        .map(|text| format!("BT /F1 12 Tf 72 720 Td ({}) Tj ET", text.replace('(', "\\(").replace(')', "\\)")))
        .collect();
    pdf_with(&contents, "")
}

/// A PDF with pages that have these contents, and further objects, which have the numbers from 4 + 2 × pages.
pub fn pdf_with(contents: &[String], resources: &str) -> Vec<u8> {
    pdf_with_objects(contents, resources, &[])
}

/// The same, with further objects, which have the numbers from 4 + 2 × pages.
pub fn pdf_with_objects(contents: &[String], resources: &str, objects: &[String]) -> Vec<u8> {
    let kids: Vec<String> = (0..contents.len()).map(|index| format!("{} 0 R ", 4 + 2 * index)).collect();
    let mut all = vec![
        "<</Type/Catalog/Pages 2 0 R>>".to_owned(),
        format!("<</Type/Pages/Count {}/Kids[{}]>>", contents.len(), kids.concat()),
        "<</Type/Font/Subtype/Type1/BaseFont/Helvetica/Encoding/WinAnsiEncoding>>".to_owned(),
    ];
    for (index, content) in contents.iter().enumerate() {
        all.push(format!(
            "<</Type/Page/Parent 2 0 R/MediaBox[0 0 612 792]/Contents {} 0 R/Resources<</Font<</F1 3 0 R>>{resources}>>>>",
            5 + 2 * index
        ));
        all.push(format!("<</Length {}>>stream\n{content}\nendstream", content.len()));
    }
    all.extend_from_slice(objects);
    let mut pdf = b"%PDF-1.7\n".to_vec();
    let mut offsets = Vec::new();
    for (index, object) in all.iter().enumerate() {
        offsets.push(pdf.len());
        write!(pdf, "{} 0 obj\n{object}\nendobj\n", index + 1).unwrap();
    }
    let table = pdf.len();
    write!(pdf, "xref\n0 {}\n0000000000 65535 f \n", all.len() + 1).unwrap();
    for offset in offsets {
        writeln!(pdf, "{offset:010} 00000 n ").unwrap();
    }
    write!(pdf, "trailer<</Size {}/Root 1 0 R>>\nstartxref\n{table}\n%%EOF\n", all.len() + 1).unwrap();
    pdf
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}
