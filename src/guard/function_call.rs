//! FunctionCall messages: the few that read a large object.
//!
//! Invariant: a function is named by its OID here, so only built-in ones whose OIDs PostgreSQL fixes
//! (`pg_proc.dat`) are admitted, and of `lo_open` only the form that opens for reading.
//! Source: PostgreSQL 18, chapters 54.7 "FunctionCall" and 33.3 "Large Objects, Client Interfaces".
//!
//! libpq's large-object functions are these messages, and pg_dump reads large objects with them.

use bytes::Bytes;

use crate::guard::Refusal;
use crate::ids::RefusalClass;
use crate::sqlstate::SqlState;

const LO_OPEN: u32 = 952;
/// `lo_close`, `loread`, `lo_lseek`, `lo_tell`, `lo_lseek64`, `lo_tell64`.
const READING: [u32; 6] = [953, 954, 956, 958, 3170, 3171];
/// `INV_READ` of `libpq/libpq-fs.h`, without `INV_WRITE`.
const INV_READ: u32 = 0x0004_0000;

/// The proof of an admitted FunctionCall: the body that was judged.
#[derive(Clone, Debug)]
pub struct FunctionPermit {
    body: Bytes,
}

impl FunctionPermit {
    pub fn body(&self) -> &[u8] {
        &self.body
    }
}

/// Judges the body of a FunctionCall message.
///
/// # Errors
/// The refusal, of class `function`.
pub fn judge_function_call(body: &[u8]) -> Result<FunctionPermit, Refusal> {
    let call = Call::read(body).ok_or_else(refusal)?;
    let reads = match call.function {
        LO_OPEN => call.arguments.get(1).is_some_and(|mode| *mode == INV_READ.to_be_bytes()),
        function => READING.contains(&function),
    };
    if reads { Ok(FunctionPermit { body: Bytes::copy_from_slice(body) }) } else { Err(refusal()) }
}

fn refusal() -> Refusal {
    Refusal {
        class: RefusalClass::Function,
        sqlstate: SqlState::INSUFFICIENT_PRIVILEGE,
        message: "permission denied for function call by protocol message".to_owned(),
        detail: Some(
            "A FunctionCall message names a function by its OID; fedgate sends on only those that read a large object."
                .to_owned(),
        ),
        hint: Some("Call the function in a SELECT.".to_owned()),
        offset: None,
    }
}

/// A FunctionCall whose arguments are all binary, as libpq sends them.
struct Call<'a> {
    function: u32,
    arguments: Vec<&'a [u8]>,
}

impl<'a> Call<'a> {
    fn read(body: &'a [u8]) -> Option<Self> {
        let (function, rest) = body.split_first_chunk::<4>()?;
        let (formats, mut rest) = rest.split_first_chunk::<2>()?;
        for _ in 0..u16::from_be_bytes(*formats) {
            let (format, behind) = rest.split_first_chunk::<2>()?;
            if *format != [0, 1] {
                return None;
            }
            rest = behind;
        }
        // No format code at all means text for every argument.
        if *formats == [0, 0] {
            return None;
        }
        let (count, mut rest) = rest.split_first_chunk::<2>()?;
        let mut arguments = Vec::new();
        for _ in 0..u16::from_be_bytes(*count) {
            let (length, behind) = rest.split_first_chunk::<4>()?;
            let (argument, behind) = behind.split_at_checked(u32::from_be_bytes(*length) as usize)?;
            arguments.push(argument);
            rest = behind;
        }
        // What is left is the format of the result.
        (rest.len() == 2).then_some(Self { function: u32::from_be_bytes(*function), arguments })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A call as libpq's PQfn writes it.
    fn call(function: u32, arguments: &[&[u8]]) -> Vec<u8> {
        let mut body = function.to_be_bytes().to_vec();
        body.extend([0, 1, 0, 1]);
        body.extend((arguments.len() as u16).to_be_bytes());
        for argument in arguments {
            body.extend((argument.len() as u32).to_be_bytes());
            body.extend(*argument);
        }
        body.extend([0, 1]);
        body
    }

    #[test]
    fn reading_a_large_object_and_nothing_else() {
        let oid = 12345u32.to_be_bytes();
        let mode = |mode: u32| mode.to_be_bytes();
        let cases: &[(&str, Vec<u8>, bool)] = &[
            ("open for reading", call(952, &[&oid, &mode(0x40000)]), true),
            ("open for writing", call(952, &[&oid, &mode(0x20000)]), false),
            ("open for both", call(952, &[&oid, &mode(0x60000)]), false),
            ("open with a mode of two bytes", call(952, &[&oid, &[0, 4]]), false),
            ("open without a mode", call(952, &[&oid]), false),
            ("close", call(953, &[&oid]), true),
            ("read", call(954, &[&oid, &oid]), true),
            ("write", call(955, &[&oid, b"x"]), false),
            ("create", call(957, &[&oid]), false),
            ("unlink", call(964, &[&oid]), false),
            ("truncate", call(1004, &[&oid, &oid]), false),
            ("seek", call(956, &[&oid, &oid, &oid]), true),
            ("pg_sleep", call(2626, &[&[0; 8]]), false),
            ("nothing", vec![], false),
            ("cut short", call(952, &[&oid, &mode(0x40000)])[..12].to_vec(), false),
        ];
        for (note, body, admitted) in cases {
            assert_eq!(judge_function_call(body).is_ok(), *admitted, "{note}");
        }
        let mut text = call(952, &[&oid, &mode(0x40000)]);
        text[7] = 0;
        assert!(judge_function_call(&text).is_err(), "arguments in text format");
        let mut wrapping = call(953, &[&oid]);
        wrapping[10..14].copy_from_slice(&u32::MAX.to_be_bytes());
        assert!(judge_function_call(&wrapping).is_err(), "a length that wraps");
    }
}
