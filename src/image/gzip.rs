//! A gzip stream as Python's `gzip` reads it: several members one after another, and zero bytes behind the last.
use flate2::bufread::GzDecoder;
use std::io::{self, BufRead, Read};

/// Decompresses every member; each one's checksum has been verified when reading returns 0.
pub(super) struct Members<R> {
    /// `None` once the input has ended.
    member: Option<GzDecoder<R>>,
}

impl<R: BufRead> Members<R> {
    pub(super) fn new(input: R) -> Self {
        Members { member: Some(GzDecoder::new(input)) }
    }
}

impl<R: BufRead> Read for Members<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while let Some(member) = &mut self.member {
            let n = member.read(buffer)?;
            if n > 0 || buffer.is_empty() {
                return Ok(n);
            }
            let mut input = self.member.take().expect("the loop's condition").into_inner();
            self.member = (!skip_zeros(&mut input)?).then(|| GzDecoder::new(input));
        }
        Ok(0)
    }
}

/// Passes over zero bytes; true when the input has ended.
fn skip_zeros(input: &mut impl BufRead) -> io::Result<bool> {
    loop {
        let bytes = input.fill_buf()?;
        if bytes.is_empty() {
            return Ok(true);
        }
        let zeros = bytes.iter().take_while(|&&b| b == 0).count();
        let more = zeros < bytes.len();
        input.consume(zeros);
        if more {
            return Ok(false);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::{Compression, write::GzEncoder};
    use std::io::Write;

    fn member(bytes: &[u8]) -> Vec<u8> {
        let mut w = GzEncoder::new(Vec::new(), Compression::fast());
        w.write_all(bytes).unwrap();
        w.finish().unwrap()
    }
    fn unpack(bytes: &[u8]) -> io::Result<Vec<u8>> {
        let mut out = Vec::new();
        Members::new(bytes).read_to_end(&mut out)?;
        Ok(out)
    }

    #[test]
    fn members_are_joined_and_zero_padding_is_passed_over() {
        let mut bytes = [member(b"cor"), member(b"tex")].concat();
        bytes.extend([0; 700]);
        assert_eq!(unpack(&bytes).unwrap(), b"cortex");
    }

    #[test]
    fn damage_anywhere_is_an_error() {
        let good = member(b"cortex");
        let mut bad_checksum = good.clone();
        *bad_checksum.iter_mut().rev().nth(5).unwrap() ^= 1;
        assert!(unpack(&bad_checksum).is_err());
        assert!(unpack(&good[..good.len() - 3]).is_err());
        assert!(unpack(&[&good[..], b"rubbish"].concat()).is_err());
    }
}
