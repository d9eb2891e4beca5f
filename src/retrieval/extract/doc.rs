//! Extracts the text of `.doc` files, which Word wrote until 2003. Pure.
//!
//! A compound file has a stream `WordDocument` with the text, and a table stream with the pieces of which the text consists.
//!
//! Source: \[MS-DOC\], "Retrieving Text" and "Clx".

use std::io::{Cursor, Read as _};

use cfb::CompoundFile;
use encoding_rs::WINDOWS_1252;

use super::layout::Layout;
use super::{Rejected, TEXT_BYTES_MAX};

/// Maximum size of a stream that is read, in bytes.
const STREAM_BYTES_MAX: u64 = 256 * 1024 * 1024;
/// Identifies a Word document.
const WORD_IDENTIFIER: u16 = 0xA5EC;
/// The first version of Word with this format: Word 97.
const VERSION_MIN: u16 = 0x00C1;

/// Positions in the header (`FIB`) of `WordDocument`.
mod header {
    pub const IDENTIFIER: usize = 0x00;
    pub const VERSION: usize = 0x02;
    pub const FLAGS: usize = 0x0A;
    pub const PIECES_OFFSET: usize = 0x01A2;
    pub const PIECES_LENGTH: usize = 0x01A6;
}

const FLAG_ENCRYPTED: u16 = 0x0100;
/// Set if the table stream is `1Table`, and not `0Table`.
const FLAG_TABLE_1: u16 = 0x0200;
/// Set in the position of a piece whose characters have one byte.
const PIECE_IS_COMPRESSED: u32 = 0x4000_0000;

/// Returns the text of a Word document.
///
/// # Errors
/// If the compound file is another document, encrypted or damaged, or its text is too long.
pub fn extract(bytes: &[u8]) -> Result<String, Rejected> {
    let mut file = CompoundFile::open(Cursor::new(bytes)).map_err(|_| Rejected::damaged())?;
    let Some(document) = stream(&mut file, "/WordDocument")? else { return Err(other_document(&file)) };
    if number::<2>(&document, header::IDENTIFIER).map(u16::from_le_bytes)? != WORD_IDENTIFIER {
        return Err(Rejected::damaged());
    }
    if number::<2>(&document, header::VERSION).map(u16::from_le_bytes)? < VERSION_MIN {
        return Err(Rejected::unsupported("It is a document of Word 95 or older: save it as .docx."));
    }
    let flags = number::<2>(&document, header::FLAGS).map(u16::from_le_bytes)?;
    if flags & FLAG_ENCRYPTED != 0 {
        return Err(Rejected::encrypted());
    }
    let table = if flags & FLAG_TABLE_1 == 0 { "/0Table" } else { "/1Table" };
    let table = stream(&mut file, table)?.ok_or_else(Rejected::damaged)?;
    let offset = number::<4>(&document, header::PIECES_OFFSET).map(u32::from_le_bytes)?;
    let length = number::<4>(&document, header::PIECES_LENGTH).map(u32::from_le_bytes)?;
    let pieces = slice(&table, offset as usize, length as usize)?;
    write_text(&raw_text(&document, piece_table(pieces)?)?)
}

/// Returns the error for a compound file that is not a Word document.
fn other_document(file: &CompoundFile<Cursor<&[u8]>>) -> Rejected {
    if file.is_stream("/EncryptedPackage") {
        Rejected::encrypted()
    } else if file.is_stream("/PowerPoint Document") {
        Rejected::unsupported("It is a presentation of before 2007: save it as .pptx.")
    } else if file.is_stream("/Workbook") || file.is_stream("/Book") {
        Rejected::unsupported("It is a spreadsheet: export its sheets as text, or as tables in a .docx or .pdf file.")
    } else {
        Rejected::unsupported("It is an Office document of before 2007: save it as .docx, .pptx or .pdf.")
    }
}

fn stream(file: &mut CompoundFile<Cursor<&[u8]>>, name: &str) -> Result<Option<Vec<u8>>, Rejected> {
    if !file.is_stream(name) {
        return Ok(None);
    }
    let mut bytes = Vec::new();
    let stream = file.open_stream(name).map_err(|_| Rejected::damaged())?;
    stream.take(STREAM_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(|_| Rejected::damaged())?;
    if bytes.len() as u64 > STREAM_BYTES_MAX { Err(Rejected::too_long()) } else { Ok(Some(bytes)) }
}

fn number<const LENGTH: usize>(bytes: &[u8], offset: usize) -> Result<[u8; LENGTH], Rejected> {
    bytes.get(offset..).and_then(|rest| rest.first_chunk::<LENGTH>()).copied().ok_or_else(Rejected::damaged)
}

fn slice(bytes: &[u8], offset: usize, length: usize) -> Result<&[u8], Rejected> {
    let end = offset.checked_add(length).ok_or_else(Rejected::damaged)?;
    bytes.get(offset..end).ok_or_else(Rejected::damaged)
}

/// Returns the piece table (`PlcPcd`). Changes of properties come before it.
fn piece_table(mut pieces: &[u8]) -> Result<&[u8], Rejected> {
    const CHANGE: u8 = 1;
    const TABLE: u8 = 2;
    loop {
        match pieces.first() {
            Some(&CHANGE) => {
                let length = usize::from(number::<2>(pieces, 1).map(u16::from_le_bytes)?);
                pieces = pieces.get(3 + length..).ok_or_else(Rejected::damaged)?;
            }
            Some(&TABLE) => {
                let length = number::<4>(pieces, 1).map(u32::from_le_bytes)?;
                return slice(pieces, 5, length as usize);
            }
            _ => return Err(Rejected::damaged()),
        }
    }
}

/// Joins the pieces of the text. The table has the positions of n + 1 characters, and then n descriptions of 8 bytes.
fn raw_text(document: &[u8], table: &[u8]) -> Result<String, Rejected> {
    let count = table.len().saturating_sub(4) / 12;
    let mut text = String::new();
    for index in 0..count {
        let start = number::<4>(table, index * 4).map(u32::from_le_bytes)?;
        let end = number::<4>(table, index * 4 + 4).map(u32::from_le_bytes)?;
        let characters = end.checked_sub(start).ok_or_else(Rejected::damaged)? as usize;
        let position = number::<4>(table, (count + 1) * 4 + index * 8 + 2).map(u32::from_le_bytes)?;
        if position & PIECE_IS_COMPRESSED == 0 {
            let bytes = slice(document, position as usize, characters.saturating_mul(2))?;
            let (units, _) = bytes.as_chunks::<2>();
            let units = units.iter().map(|unit| u16::from_le_bytes(*unit));
            text.extend(char::decode_utf16(units).map(|unit| unit.unwrap_or(char::REPLACEMENT_CHARACTER)));
        } else {
            let bytes = slice(document, ((position & !PIECE_IS_COMPRESSED) / 2) as usize, characters)?;
            text.push_str(&WINDOWS_1252.decode_without_bom_handling(bytes).0);
        }
        if text.len() > TEXT_BYTES_MAX {
            return Err(Rejected::too_long());
        }
    }
    Ok(text)
}

/// Replaces Word's special characters, and leaves out the instructions of fields.
///
/// Source: \[MS-DOC\], "Special Characters" and "Fields".
fn write_text(raw: &str) -> Result<String, Rejected> {
    let mut layout = Layout::default();
    // Fields whose instructions are being read. A field in an instruction belongs to the instruction.
    let mut fields: Vec<bool> = Vec::new();
    let mut in_instructions = 0_usize;
    let mut rest = raw.chars().peekable();
    while let Some(character) = rest.next() {
        match character {
            '\x13' => {
                fields.push(true);
                in_instructions += 1;
            }
            '\x14' => {
                if let Some(is_instruction) = fields.last_mut().filter(|is_instruction| **is_instruction) {
                    *is_instruction = false;
                    in_instructions -= 1;
                }
            }
            '\x15' => {
                if fields.pop() == Some(true) {
                    in_instructions -= 1;
                }
            }
            _ if in_instructions > 0 => {}
            '\r' if rest.next_if_eq(&'\r').is_some() => layout.paragraph(),
            '\r' | '\x0B' | '\x0E' => layout.line(),
            '\x0C' => layout.paragraph(),
            // The end of a cell, and of a row after the end of its last cell.
            '\x07' if rest.next_if_eq(&'\x07').is_some() => layout.line(),
            '\x07' | '\t' => layout.tab(),
            '\x1E' => layout.push("\u{2011}")?,
            _ if character.is_control() => {}
            _ => layout.push(character.encode_utf8(&mut [0; 4]))?,
        }
    }
    Ok(layout.finish())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn special_characters_become_blanks_and_instructions_are_left_out() {
        let raw = "Title\rSee \x13 HYPERLINK \"http://x\" \x14the \x13 REF a \x14page\x15\x15.\x0Bnext\r\rName\x07Age\x07\x07Ada\x0736\x07\x07\
            a\x1Eb\x1Fc\x01\x0Cend\r";

        assert_eq!(write_text(raw).unwrap(), "Title\nSee the page.\nnext\n\nName\tAge\nAda\t36\na\u{2011}bc\n\nend");
    }

    #[test]
    fn unbalanced_fields_do_not_fail() {
        assert_eq!(write_text("a\x15b\x14c\x13d").unwrap(), "abc");
    }

    #[test]
    fn a_table_with_positions_outside_of_the_document_is_damaged() {
        let mut table = Vec::new();
        table.extend_from_slice(&0_u32.to_le_bytes());
        table.extend_from_slice(&1_000_000_u32.to_le_bytes());
        table.extend_from_slice(&[0, 0, 0xFF, 0xFF, 0xFF, 0x3F, 0, 0]);

        assert_eq!(raw_text(b"short", &table), Err(Rejected::damaged()));
    }
}
