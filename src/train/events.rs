//! TensorBoard event files: TFRecord framing around hand-encoded `Event` messages.
use std::{
    fs::File,
    io::Write,
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use crate::error::{FileError, OnFile};

/// One event file, written a step at a time.
pub(super) struct EventFile {
    path: PathBuf,
    file: File,
}

impl EventFile {
    /// Starts a file of its own in `folder`. TensorBoard forgets what earlier files there say of step `first` and of
    /// later ones.
    pub(super) fn create(folder: &Path, first: u64) -> Result<Self, FileError> {
        let now = now();
        // TensorBoard reads a folder's files in order of name; nanoseconds keep the order and the names apart.
        let name = format!("events.out.tfevents.{:010}.{:09}", now.as_secs(), now.subsec_nanos());
        let path = folder.join(name);
        let file = File::create_new(&path).on_file("create", &path)?;
        let mut events = EventFile { path, file };
        events.write(&record(&field(3, b"brain.Event:2")))?;
        // 7 = session_log { 1 status: START = 1 }
        events.write(&record(&[step_field(first), field(7, &[1 << 3, 1])].concat()))?;
        Ok(events)
    }

    /// Writes the values of one step: 5 = summary { 1 = value { 1 tag, 2 simple_value } .. }.
    pub(super) fn scalars(&mut self, step: u64, values: &[(&str, f64)]) -> Result<(), FileError> {
        let value = |&(name, x): &(&str, f64)| {
            let simple_value = [&[2 << 3 | 5][..], &(x as f32).to_le_bytes()].concat();
            field(1, &[field(1, name.as_bytes()), simple_value].concat())
        };
        let summary: Vec<u8> = values.iter().flat_map(value).collect();
        self.write(&record(&[step_field(step), field(5, &summary)].concat()))
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), FileError> {
        self.file.write_all(bytes).on_file("write", &self.path)
    }
}

fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// An event with its time (1 = wall_time) and the other fields, framed: length u64, its checksum, bytes, theirs.
fn record(fields: &[u8]) -> Vec<u8> {
    let event = [&[1 << 3 | 1][..], &now().as_secs_f64().to_le_bytes(), fields].concat();
    let length = (event.len() as u64).to_le_bytes();
    [&length[..], &checksum(&length), &event, &checksum(&event)].concat()
}

/// CRC-32C, rotated and shifted as TFRecord wants it, so that a checksum of checksums stays a good one.
fn checksum(bytes: &[u8]) -> [u8; 4] {
    crc32c::crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8).to_le_bytes()
}

/// Protobuf: field `number`, of bytes.
fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
    let mut message = vec![number << 3 | 2];
    varint(&mut message, bytes.len() as u64);
    message.extend(bytes);
    message
}

/// 2 = step.
fn step_field(step: u64) -> Vec<u8> {
    let mut message = vec![2 << 3];
    varint(&mut message, step);
    message
}

/// Protobuf's integers: seven bits a byte, low ones first.
fn varint(message: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        message.push(value as u8 | 0x80);
        value >>= 7;
    }
    message.push(value as u8);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes `n` bytes off the front.
    fn take<'a>(bytes: &mut &'a [u8], n: usize) -> &'a [u8] {
        let (head, tail) = bytes.split_at(n);
        *bytes = tail;
        head
    }

    fn read_varint(bytes: &mut &[u8]) -> u64 {
        let mut value = 0;
        for shift in (0..).step_by(7) {
            let byte = take(bytes, 1)[0];
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                break;
            }
        }
        value
    }

    /// A message's fields as (number, varint, bytes).
    fn fields(mut message: &[u8]) -> Vec<(u64, u64, &[u8])> {
        let mut fields = Vec::new();
        while !message.is_empty() {
            let key = read_varint(&mut message);
            fields.push(match key & 7 {
                0 => (key >> 3, read_varint(&mut message), &[][..]),
                1 => (key >> 3, 0, take(&mut message, 8)),
                2 => {
                    let n = read_varint(&mut message) as usize;
                    (key >> 3, 0, take(&mut message, n))
                }
                _ => (key >> 3, 0, take(&mut message, 4)),
            });
        }
        fields
    }

    #[test]
    fn events_are_framed_checked_and_decodable() {
        let folder = tempfile::tempdir().unwrap();
        let mut events = EventFile::create(folder.path(), 300).unwrap();
        events.scalars(300, &[("loss", 0.5), ("learning_rate", 1e-3)]).unwrap();
        let file = std::fs::read(&events.path).unwrap();

        let mut rest = file.as_slice();
        let mut events = Vec::new();
        while !rest.is_empty() {
            let length = take(&mut rest, 8);
            assert_eq!(take(&mut rest, 4), checksum(length));
            let event = take(&mut rest, u64::from_le_bytes(length.try_into().unwrap()) as usize);
            assert_eq!(take(&mut rest, 4), checksum(event));
            events.push(fields(event));
        }
        assert_eq!(events.len(), 3);
        assert_eq!(events[0][1], (3, 0, &b"brain.Event:2"[..]));
        assert_eq!(events[1][1..], [(2, 300, &[][..]), (7, 0, &[8, 1][..])]);
        assert_eq!(events[2][1], (2, 300, &[][..]));
        let values = fields(events[2][2].2);
        let (tag, x) = (fields(values[1].2)[0].2, fields(values[1].2)[1].2);
        assert_eq!((tag, x), (&b"learning_rate"[..], &1e-3f32.to_le_bytes()[..]));
    }

    /// The check value of CRC-32C is e3069283 (RFC 3720); masked as TFRecord does.
    #[test]
    fn checksum_is_the_masked_castagnoli_crc() {
        let masked = 0xe306_9283_u32.rotate_right(15).wrapping_add(0xa282_ead8);
        assert_eq!(checksum(b"123456789"), masked.to_le_bytes());
    }
}
