//! Looks at a write-ahead log before SQLite recovers it. SQLite takes the first frame that does not match its checksum for
//! the torn end of a crash, and forgets everything from there on. That is right for the last transaction only: each one
//! is synced before the next begins, so a bad frame with whole transactions behind it was damaged later.
//!
//! The format is that of SQLite's documentation (File Format, 4.1 and 4.2): a header of 32 bytes, then frames of 24 bytes
//! and a page; big-endian numbers; cumulative checksums, whose byte order the magic number says.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::Path;

const HEADER_BYTES: usize = 32;
const FRAME_HEADER_BYTES: usize = 24;
const MAGIC: u32 = 0x377f_0682;
const PAGE_BYTES_MAX: u32 = 65_536;

/// The first frame of a write-ahead log that was damaged after it was synced, from 1.
pub(super) fn damaged(path: &Path) -> io::Result<Option<u64>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let length = file.metadata()?.len();
    let mut reader = BufReader::with_capacity(1 << 20, file);
    let mut header = [0; HEADER_BYTES];
    if length < HEADER_BYTES as u64 {
        return Ok(None);
    }
    reader.read_exact(&mut header)?;
    let Some(mut frames) = Frames::of(&header) else {
        // It may be the torn header of a round that was about to begin: what lies behind it is in the database already.
        return Ok(None);
    };
    let mut frame = vec![0; FRAME_HEADER_BYTES + frames.page_bytes];
    let (mut number, mut bad, mut is_committed_behind) = (0, None, false);
    while read_whole(&mut reader, &mut frame)? {
        number += 1;
        if bad.is_none() && frames.follows(&frame) {
            continue;
        }
        bad = bad.or(Some(number));
        if frames.is_of_this_log(&frame) {
            if is_committed_behind {
                return Ok(bad);
            }
            is_committed_behind = word(&frame, 4) != 0;
        }
    }
    Ok(None)
}

/// Fills the buffer, unless the file ends before.
fn read_whole(reader: &mut impl Read, buffer: &mut [u8]) -> io::Result<bool> {
    match reader.read_exact(buffer) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

/// What the next frame must match.
struct Frames {
    page_bytes: usize,
    salts: [u8; 8],
    is_big_endian: bool,
    sums: (u32, u32),
}

impl Frames {
    /// `None` when the header does not match its own checksum.
    fn of(header: &[u8; HEADER_BYTES]) -> Option<Self> {
        let magic = word(header, 0);
        let page_bytes = word(header, 8);
        let mut salts = [0; 8];
        salts.copy_from_slice(&header[16..24]);
        let is_page = page_bytes.is_power_of_two() && (512..=PAGE_BYTES_MAX).contains(&page_bytes);
        let mut frames = Frames { page_bytes: page_bytes as usize, salts, is_big_endian: magic & 1 == 1, sums: (0, 0) };
        frames.sums = frames.sum(&header[..24]);
        let is_good = magic & !1 == MAGIC && is_page && frames.sums == (word(header, 24), word(header, 28));
        is_good.then_some(frames)
    }

    /// Whether a frame is the next one; then the one after it is expected.
    fn follows(&mut self, frame: &[u8]) -> bool {
        let before = self.sums;
        self.sums = self.sum(&frame[..8]);
        self.sums = self.sum(&frame[FRAME_HEADER_BYTES..]);
        let is_next = self.is_of_this_log(frame) && self.sums == (word(frame, 16), word(frame, 20));
        if !is_next {
            self.sums = before;
        }
        is_next
    }

    /// Frames of earlier rounds lie behind the end with other salts.
    fn is_of_this_log(&self, frame: &[u8]) -> bool {
        frame[8..16] == self.salts
    }

    fn sum(&self, bytes: &[u8]) -> (u32, u32) {
        let read = |bytes: &[u8]| {
            let word = [bytes[0], bytes[1], bytes[2], bytes[3]];
            if self.is_big_endian { u32::from_be_bytes(word) } else { u32::from_le_bytes(word) }
        };
        bytes.chunks_exact(8).fold(self.sums, |(first, second), pair| {
            let first = first.wrapping_add(read(pair)).wrapping_add(second);
            (first, second.wrapping_add(read(&pair[4..])).wrapping_add(first))
        })
    }
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}
