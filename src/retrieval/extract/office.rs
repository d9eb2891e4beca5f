//! Extracts the text of `.docx` and `.pptx` files: ZIP archives with XML parts. Pure.
//!
//! Reads the parts that the relationships of a package name, in the order of the document. References to entities that a
//! document defines are left out, so that they cannot expand.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Cursor, Read as _};

use quick_xml::events::{BytesStart, Event};
use quick_xml::reader::Reader;
use zip::ZipArchive;
use zip::result::ZipError;

use super::Rejected;
use super::layout::Layout;
use super::text;

/// Maximum size of all parts that are read, in bytes. A larger package is probably made to exhaust memory.
const PARTS_BYTES_MAX: u64 = 512 * 1024 * 1024;
/// Maximum number of parts that are read.
const PARTS_MAX: usize = 20_000;

/// Returns the text of a Word document or a presentation.
///
/// # Errors
/// If the package is of another kind, encrypted or damaged, or its text is too long.
pub fn extract(bytes: &[u8]) -> Result<String, Rejected> {
    let mut package = Package::open(bytes)?;
    let root = package.relationships("")?.into_iter().find(|relationship| relationship.kind == "officeDocument");
    let Some(main) = root.map(|relationship| relationship.target) else {
        return Err(other_archive(&package));
    };
    let xml = package.part(&main)?.ok_or_else(Rejected::damaged)?;
    match root_element(&xml).as_deref() {
        Some("document") => document(&mut package, &main, &xml),
        Some("presentation") => presentation(&mut package, &main, &xml),
        Some("workbook") => Err(Rejected::unsupported(
            "It is a spreadsheet: export its sheets as text, or as tables in a .docx or .pdf file.",
        )),
        _ => Err(Rejected::damaged()),
    }
}

/// Returns the error for a ZIP archive that is not an Office document.
fn other_archive(package: &Package<'_>) -> Rejected {
    if package.archive.index_for_name("mimetype").is_some() {
        Rejected::unsupported("It is an OpenDocument file: save it as .docx, .pptx or .pdf.")
    } else {
        Rejected::unsupported("It is a ZIP archive: upload the files in it.")
    }
}

/// Reads a Word document: its text, then what its pages have around it.
fn document(package: &mut Package<'_>, main: &str, xml: &str) -> Result<String, Rejected> {
    let mut layout = Layout::default();
    let relationships = package.relationships(main)?;
    // Sections often have the same headers.
    let mut seen = BTreeSet::new();
    let mut parts = |package: &mut Package<'_>, kinds: &[&str], layout: &mut Layout| {
        for relationship in relationships.iter().filter(|relationship| kinds.contains(&relationship.kind.as_str())) {
            let Some(xml) = package.part(&relationship.target)? else { continue };
            let mut part = Layout::default();
            write_text(&xml, &mut part)?;
            let text = part.finish();
            if !text.trim().is_empty() && seen.insert(text.clone()) {
                layout.paragraph();
                layout.push(&text)?;
            }
        }
        Ok::<(), Rejected>(())
    };
    parts(package, &["header"], &mut layout)?;
    layout.paragraph();
    write_text(xml, &mut layout)?;
    parts(package, &["footer"], &mut layout)?;
    parts(package, &["footnotes", "endnotes", "comments", "diagramData", "chart"], &mut layout)?;
    Ok(layout.finish())
}

/// Reads a presentation: each slide, followed by its notes.
fn presentation(package: &mut Package<'_>, main: &str, xml: &str) -> Result<String, Rejected> {
    let relationships = package.relationships(main)?;
    let targets: BTreeMap<&str, &str> =
        relationships.iter().map(|relationship| (relationship.id.as_str(), relationship.target.as_str())).collect();
    let mut layout = Layout::default();
    for id in slide_ids(xml)? {
        let Some(slide) = targets.get(id.as_str()) else { continue };
        let Some(xml) = package.part(slide)? else { continue };
        layout.paragraph();
        write_text(&xml, &mut layout)?;
        let parts = package.relationships(slide)?;
        for kind in ["diagramData", "chart", "notesSlide", "comments"] {
            for relationship in parts.iter().filter(|relationship| relationship.kind == kind) {
                let Some(xml) = package.part(&relationship.target)? else { continue };
                layout.paragraph();
                write_text(&xml, &mut layout)?;
            }
        }
    }
    Ok(layout.finish())
}

/// Returns the IDs of the relationships to the slides, in the order of the presentation.
fn slide_ids(xml: &str) -> Result<Vec<String>, Rejected> {
    let mut ids = Vec::new();
    let mut reader = reader(xml);
    loop {
        match reader.read_event().map_err(|_| Rejected::damaged())? {
            Event::Start(element) | Event::Empty(element) if element.local_name().as_ref() == b"sldId" => {
                // Its attribute `id` without a prefix is a number.
                let relationship = element
                    .attributes()
                    .flatten()
                    .find(|attribute| attribute.key.local_name().as_ref() == b"id" && attribute.key.prefix().is_some());
                ids.extend(relationship.map(|attribute| String::from_utf8_lossy(&attribute.value).into_owned()));
            }
            Event::Eof => return Ok(ids),
            _ => {}
        }
    }
}

/// Writes the text of a part.
fn write_text(xml: &str, layout: &mut Layout) -> Result<(), Rejected> {
    let mut reader = reader(xml);
    let mut walker = Walker { layout, text_depth: 0, skipped_depth: 0, values_depth: 0, cells: 0, has_text: false };
    loop {
        match reader.read_event().map_err(|_| Rejected::damaged())? {
            Event::Start(element) => walker.start(&element)?,
            Event::Empty(element) => walker.empty(&element)?,
            Event::End(element) => walker.end(element.local_name().as_ref()),
            Event::Text(text) => walker.push(&text.decode().map_err(|_| Rejected::damaged())?)?,
            Event::CData(text) => walker.push(&text.decode().map_err(|_| Rejected::damaged())?)?,
            Event::GeneralRef(reference) => {
                let name = reference.decode().map_err(|_| Rejected::damaged())?;
                match reference.resolve_char_ref() {
                    Ok(Some(character)) => walker.push(character.encode_utf8(&mut [0; 4]))?,
                    _ => walker.push(quick_xml::escape::resolve_predefined_entity(&name).unwrap_or_default())?,
                }
            }
            Event::Eof => return Ok(()),
            Event::Comment(_) | Event::Decl(_) | Event::PI(_) | Event::DocType(_) => {}
        }
    }
}

/// The state of a walk through a part.
struct Walker<'a> {
    layout: &'a mut Layout,
    /// Number of open elements that have text.
    text_depth: usize,
    /// Number of open elements since the first one whose content is skipped.
    skipped_depth: usize,
    /// Number of open lists of values of a chart.
    values_depth: usize,
    /// Number of open cells of tables.
    cells: usize,
    /// Whether the current paragraph has text.
    has_text: bool,
}

impl Walker<'_> {
    fn start(&mut self, element: &BytesStart<'_>) -> Result<(), Rejected> {
        if self.skipped_depth > 0 || is_skipped(element) {
            self.skipped_depth += 1;
            return Ok(());
        }
        match element.local_name().as_ref() {
            b"t" => self.text_depth += 1,
            b"v" if self.values_depth > 0 => {
                self.layout.line();
                self.text_depth += 1;
            }
            b"strCache" => self.values_depth += 1,
            b"tc" => self.cells += 1,
            b"tr" => self.layout.line(),
            b"tbl" => self.layout.paragraph(),
            _ => self.empty(element)?,
        }
        Ok(())
    }

    fn empty(&mut self, element: &BytesStart<'_>) -> Result<(), Rejected> {
        if self.skipped_depth > 0 {
            return Ok(());
        }
        match element.local_name().as_ref() {
            b"br" | b"cr" => self.layout.line(),
            b"tab" | b"ptab" => self.layout.tab(),
            b"noBreakHyphen" => self.layout.push("\u{2011}")?,
            _ => {}
        }
        Ok(())
    }

    fn end(&mut self, name: &[u8]) {
        if self.skipped_depth > 0 {
            self.skipped_depth -= 1;
            return;
        }
        match name {
            b"t" => self.text_depth = self.text_depth.saturating_sub(1),
            b"v" if self.values_depth > 0 => {
                self.text_depth = self.text_depth.saturating_sub(1);
                self.layout.line();
            }
            b"strCache" => self.values_depth = self.values_depth.saturating_sub(1),
            b"p" => self.end_paragraph(),
            b"tc" => {
                self.cells = self.cells.saturating_sub(1);
                self.layout.tab();
            }
            b"tr" => self.layout.line(),
            b"tbl" | b"txBody" | b"txbxContent" | b"footnote" | b"endnote" | b"comment" => self.layout.paragraph(),
            _ => {}
        }
    }

    /// Ends a line. Paragraphs in a cell stay in one line; a paragraph without text is an empty line.
    fn end_paragraph(&mut self) {
        let had_text = std::mem::take(&mut self.has_text);
        match (self.cells, had_text) {
            (0, true) => self.layout.line(),
            (0, false) => self.layout.paragraph(),
            _ => self.layout.space(),
        }
    }

    fn push(&mut self, text: &str) -> Result<(), Rejected> {
        if self.text_depth == 0 || self.skipped_depth > 0 {
            return Ok(());
        }
        self.has_text |= !text.trim().is_empty();
        self.layout.push(text)
    }
}

/// Returns whether the content of an element is not text of the document: properties, which name tab stops like tabs;
/// deleted and moved text; the second form of a drawing; numbers and dates that a program fills in.
fn is_skipped(element: &BytesStart<'_>) -> bool {
    match element.local_name().as_ref() {
        b"pPr" | b"rPr" | b"sectPr" | b"tblPr" | b"trPr" | b"tcPr" | b"del" | b"moveFrom" | b"instrText"
        | b"Fallback" => true,
        b"fld" => {
            let kind = element.attributes().flatten().find(|attribute| attribute.key.as_ref() == b"type");
            kind.is_some_and(|kind| kind.value.starts_with(b"slidenum") || kind.value.starts_with(b"datetime"))
        }
        _ => false,
    }
}

fn reader(xml: &str) -> Reader<&[u8]> {
    let mut reader = Reader::from_str(xml);
    // Damage that does not matter for the text.
    let config = reader.config_mut();
    config.allow_dangling_amp = true;
    config.allow_unmatched_ends = true;
    config.check_end_names = false;
    reader
}

fn root_element(xml: &str) -> Option<String> {
    let mut reader = reader(xml);
    loop {
        match reader.read_event().ok()? {
            Event::Start(element) | Event::Empty(element) => {
                return Some(String::from_utf8_lossy(element.local_name().as_ref()).into_owned());
            }
            Event::Eof => return None,
            _ => {}
        }
    }
}

/// A relationship of a part to another part.
#[derive(Debug, PartialEq, Eq)]
struct Relationship {
    id: String,
    /// The last segment of its type.
    kind: String,
    /// The name of the other part.
    target: String,
}

/// An Office document: an archive of parts.
struct Package<'a> {
    archive: ZipArchive<Cursor<&'a [u8]>>,
    /// How many bytes may still be read.
    bytes_left: u64,
    /// How many parts may still be read.
    parts_left: usize,
}

impl<'a> Package<'a> {
    fn open(bytes: &'a [u8]) -> Result<Self, Rejected> {
        let archive = ZipArchive::new(Cursor::new(bytes)).map_err(|_| Rejected::damaged())?;
        Ok(Self { archive, bytes_left: PARTS_BYTES_MAX, parts_left: PARTS_MAX })
    }

    /// Reads a part. Returns `None` if there is none with this name.
    fn part(&mut self, name: &str) -> Result<Option<String>, Rejected> {
        let file = match self.archive.by_name(name) {
            Ok(file) => file,
            Err(ZipError::FileNotFound) => return Ok(None),
            Err(ZipError::UnsupportedArchive(ZipError::PASSWORD_REQUIRED)) => return Err(Rejected::encrypted()),
            Err(_) => return Err(Rejected::damaged()),
        };
        self.parts_left = self.parts_left.checked_sub(1).ok_or_else(too_many_parts)?;
        let mut bytes = Vec::new();
        file.take(self.bytes_left + 1).read_to_end(&mut bytes).map_err(|_| Rejected::damaged())?;
        self.bytes_left = self.bytes_left.checked_sub(bytes.len() as u64).ok_or_else(too_many_parts)?;
        Ok(Some(text::decode_lossy(bytes)))
    }

    /// Returns the relationships of a part, or of the package if `part` is empty. Leaves out those to other documents.
    fn relationships(&mut self, part: &str) -> Result<Vec<Relationship>, Rejected> {
        let (folder, name) = part.rsplit_once('/').unwrap_or(("", part));
        let separator = if folder.is_empty() { "" } else { "/" };
        let Some(xml) = self.part(&format!("{folder}{separator}_rels/{name}.rels"))? else { return Ok(Vec::new()) };
        let mut found = Vec::new();
        let mut reader = reader(&xml);
        loop {
            match reader.read_event().map_err(|_| Rejected::damaged())? {
                Event::Start(element) | Event::Empty(element) if element.local_name().as_ref() == b"Relationship" => {
                    found.extend(relationship(&element, folder));
                }
                Event::Eof => return Ok(found),
                _ => {}
            }
        }
    }
}

fn too_many_parts() -> Rejected {
    let max = PARTS_BYTES_MAX / (1024 * 1024);
    Rejected::invalid(&format!("it is too large: its parts have more than {max} MB. Split it into several files"))
}

fn relationship(element: &BytesStart<'_>, folder: &str) -> Option<Relationship> {
    let attribute = |name: &[u8]| {
        let found = element.attributes().flatten().find(|attribute| attribute.key.as_ref() == name)?;
        let value = String::from_utf8_lossy(&found.value);
        Some(quick_xml::escape::unescape(&value).ok()?.into_owned())
    };
    if attribute(b"TargetMode").as_deref() == Some("External") {
        return None;
    }
    let kind = attribute(b"Type")?.rsplit('/').next()?.to_owned();
    Some(Relationship { id: attribute(b"Id")?, kind, target: resolve(folder, &attribute(b"Target")?) })
}

/// Returns the name of the part that a target leads to, from a folder.
fn resolve(folder: &str, target: &str) -> String {
    let (folder, target) = match target.strip_prefix('/') {
        Some(target) => ("", target),
        None => (folder, target),
    };
    let mut names: Vec<&str> = folder.split('/').filter(|name| !name.is_empty()).collect();
    for name in target.split('/') {
        match name {
            "" | "." => {}
            ".." => {
                names.pop();
            }
            name => names.push(name),
        }
    }
    names.join("/")
}
