//! The server's side of SCRAM-SHA-256 and SCRAM-SHA-256-PLUS.
//!
//! Invariant: an unknown user takes the same steps and the same time as a wrong password, and nothing
//! is compared in variable time. Pure: nonces and verifiers come from the caller.
//! Source: RFC 5802, RFC 7677, RFC 5929 (tls-server-end-point); PostgreSQL 18, chapter 54.3.
//!
//! Written here since no kept crate verifies against stored keys: pgwire's server side wants the
//! salted password itself, which a users file of verifiers does not hold.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use hmac::{Hmac, Mac};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use thiserror::Error;

use crate::config::Verifier;

pub const MECHANISM: &str = "SCRAM-SHA-256";
pub const MECHANISM_PLUS: &str = "SCRAM-SHA-256-PLUS";

/// Longest message of a client; PostgreSQL's own clients send some 200 bytes.
const LONGEST: usize = 4096;

#[derive(Debug, Error, PartialEq, Eq)]
pub enum ScramError {
    #[error("malformed SCRAM message")]
    Malformed,
    #[error("client selected an invalid SASL authentication mechanism")]
    Mechanism,
    #[error("SCRAM channel binding negotiation error")]
    Negotiation,
    #[error("unsupported SCRAM channel-binding type")]
    BindingType,
    #[error("SCRAM channel binding check failed")]
    Binding,
    #[error("client uses authorization identity, but it is not supported")]
    AuthorizationIdentity,
    /// The proof does not fit; also for a user who is not there.
    #[error("wrong password or unknown user")]
    Proof,
}

/// An exchange with one client.
pub struct Exchange {
    verifier: Verifier,
    /// The user is not there: whatever the proof, it does not fit.
    doomed: bool,
    /// Hash of the gateway's certificate, on TLS.
    end_point: Option<Vec<u8>>,
    gs2_header: String,
    client_first_bare: String,
    server_first: String,
    nonce: String,
    plus: bool,
}

impl Exchange {
    pub fn new(verifier: Verifier, doomed: bool, end_point: Option<Vec<u8>>) -> Self {
        Self {
            verifier,
            doomed,
            end_point,
            gs2_header: String::new(),
            client_first_bare: String::new(),
            server_first: String::new(),
            nonce: String::new(),
            plus: false,
        }
    }

    /// What to offer: channel binding comes with TLS.
    pub fn mechanisms(&self) -> &'static [&'static str] {
        if self.end_point.is_some() { &[MECHANISM_PLUS, MECHANISM] } else { &[MECHANISM] }
    }

    /// Takes the client-first-message; gives the server-first-message.
    pub fn first(
        &mut self,
        mechanism: &str,
        message: &[u8],
        server_nonce: &str,
    ) -> Result<String, ScramError> {
        let message = text(message)?;
        self.plus = match mechanism {
            MECHANISM => false,
            MECHANISM_PLUS if self.end_point.is_some() => true,
            _ => return Err(ScramError::Mechanism),
        };
        // gs2-cbind-flag "," [ authzid ] "," client-first-message-bare
        let mut parts = message.splitn(3, ',');
        let (flag, identity, bare) = match (parts.next(), parts.next(), parts.next()) {
            (Some(flag), Some(identity), Some(bare)) => (flag, identity, bare),
            _ => return Err(ScramError::Malformed),
        };
        match (flag, self.plus) {
            ("n", false) => {}
            // The client can bind and believes that the gateway cannot: somebody took the offer away.
            ("y", false) if self.end_point.is_some() => return Err(ScramError::Negotiation),
            ("y", false) => {}
            ("p=tls-server-end-point", true) => {}
            (flag, true) if flag.starts_with("p=") => return Err(ScramError::BindingType),
            _ => return Err(ScramError::Negotiation),
        }
        if !identity.is_empty() {
            return Err(ScramError::AuthorizationIdentity);
        }
        self.gs2_header = format!("{flag},{identity},");
        // The name in n= is not looked at: the startup packet says who the user is.
        let mut attributes = bare.split(',');
        let name = attributes.next().ok_or(ScramError::Malformed)?;
        let nonce =
            attributes.next().and_then(|nonce| nonce.strip_prefix("r=")).ok_or(ScramError::Malformed)?;
        let printable = nonce.bytes().all(|byte| (0x21..=0x7e).contains(&byte));
        if !name.starts_with("n=") || nonce.is_empty() || !printable || attributes.next().is_some() {
            return Err(ScramError::Malformed);
        }
        self.client_first_bare = bare.to_owned();
        self.nonce = format!("{nonce}{server_nonce}");
        self.server_first = format!(
            "r={},s={},i={}",
            self.nonce,
            BASE64.encode(&self.verifier.salt),
            self.verifier.iterations
        );
        Ok(self.server_first.clone())
    }

    /// Takes the client-final-message; gives the server-final-message when the proof fits.
    pub fn last(&self, message: &[u8]) -> Result<String, ScramError> {
        let message = text(message)?;
        let (without_proof, proof) = message.rsplit_once(",p=").ok_or(ScramError::Malformed)?;
        let mut attributes = without_proof.split(',');
        let binding =
            attributes.next().and_then(|part| part.strip_prefix("c=")).ok_or(ScramError::Malformed)?;
        let nonce =
            attributes.next().and_then(|part| part.strip_prefix("r=")).ok_or(ScramError::Malformed)?;
        if attributes.next().is_some() {
            return Err(ScramError::Malformed);
        }
        let mut bound = self.gs2_header.clone().into_bytes();
        if self.plus {
            bound.extend_from_slice(self.end_point.as_deref().unwrap_or_default());
        }
        let binding = BASE64.decode(binding).map_err(|_| ScramError::Malformed)?;
        if !bool::from(binding.ct_eq(&bound)) {
            return Err(ScramError::Binding);
        }
        if self.nonce.is_empty() || !bool::from(nonce.as_bytes().ct_eq(self.nonce.as_bytes())) {
            return Err(ScramError::Malformed);
        }
        let proof = BASE64.decode(proof).map_err(|_| ScramError::Malformed)?;
        let proof: [u8; 32] = proof.try_into().map_err(|_| ScramError::Malformed)?;

        let auth_message = format!("{},{},{}", self.client_first_bare, self.server_first, without_proof);
        let signature = hmac(&self.verifier.stored_key, auth_message.as_bytes());
        let mut client_key = proof;
        for (byte, mask) in client_key.iter_mut().zip(signature) {
            *byte ^= mask;
        }
        let fits = Sha256::digest(client_key).ct_eq(&self.verifier.stored_key);
        let server_signature = hmac(&self.verifier.server_key, auth_message.as_bytes());
        if bool::from(fits) && !self.doomed {
            Ok(format!("v={}", BASE64.encode(server_signature)))
        } else {
            Err(ScramError::Proof)
        }
    }
}

fn text(message: &[u8]) -> Result<&str, ScramError> {
    if message.len() > LONGEST {
        return Err(ScramError::Malformed);
    }
    std::str::from_utf8(message).map_err(|_| ScramError::Malformed)
}

fn hmac(key: &[u8; 32], message: &[u8]) -> [u8; 32] {
    let mut block = [0; 64];
    for (byte, key) in block.iter_mut().zip(key) {
        *byte = *key;
    }
    let mut mac = Hmac::<Sha256>::new(&block.into());
    mac.update(message);
    mac.finalize().into_bytes().into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use postgres_protocol::authentication::sasl::{ChannelBinding, ScramSha256};

    fn verifier() -> Verifier {
        Verifier::derive("secret", b"0123456789abcdef", 4096)
    }

    /// PostgreSQL's own client against this server.
    fn log_in(password: &str, doomed: bool, plus: bool) -> Result<(), String> {
        let hash = b"hash of a certificate".to_vec();
        let binding = if plus {
            ChannelBinding::tls_server_end_point(hash.clone())
        } else {
            ChannelBinding::unsupported()
        };
        let mut client = ScramSha256::new(password.as_bytes(), binding);
        let mut server = Exchange::new(verifier(), doomed, Some(hash));
        let mechanism = if plus { MECHANISM_PLUS } else { MECHANISM };
        let first = server.first(mechanism, client.message(), "nonce").map_err(|e| e.to_string())?;
        client.update(first.as_bytes()).map_err(|e| e.to_string())?;
        let last = server.last(client.message()).map_err(|e| e.to_string())?;
        client.finish(last.as_bytes()).map_err(|e| e.to_string())
    }

    #[test]
    fn the_right_password_and_nothing_else() {
        assert_eq!(log_in("secret", false, false), Ok(()));
        assert_eq!(log_in("secret", false, true), Ok(()));
        let refused = Err(ScramError::Proof.to_string());
        assert_eq!(log_in("Secret", false, false), refused);
        assert_eq!(log_in("secret", true, false), refused, "an unknown user, whatever the proof");
    }

    #[test]
    fn first_messages() {
        use ScramError::*;
        let cases: &[(&str, &str, bool, Result<(), ScramError>)] = &[
            (MECHANISM, "n,,n=,r=abc", false, Ok(())),
            (MECHANISM, "y,,n=,r=abc", false, Ok(())),
            (MECHANISM, "y,,n=,r=abc", true, Err(Negotiation)),
            (MECHANISM, "p=tls-server-end-point,,n=,r=abc", true, Err(Negotiation)),
            (MECHANISM_PLUS, "p=tls-server-end-point,,n=,r=abc", true, Ok(())),
            (MECHANISM_PLUS, "p=tls-server-end-point,,n=,r=abc", false, Err(Mechanism)),
            (MECHANISM_PLUS, "p=tls-unique,,n=,r=abc", true, Err(BindingType)),
            (MECHANISM_PLUS, "n,,n=,r=abc", true, Err(Negotiation)),
            (MECHANISM, "n,a=root,n=,r=abc", false, Err(AuthorizationIdentity)),
            (MECHANISM, "n,,m=x,n=,r=abc", false, Err(Malformed)),
            (MECHANISM, "n,,n=,r=", false, Err(Malformed)),
            (MECHANISM, "n,,n=,r=a b", false, Err(Malformed)),
            (MECHANISM, "n", false, Err(Malformed)),
            ("PLAIN", "n,,n=,r=abc", false, Err(Mechanism)),
        ];
        for (mechanism, message, tls, want) in cases {
            let mut server = Exchange::new(verifier(), false, tls.then(|| b"hash".to_vec()));
            let got = server.first(mechanism, message.as_bytes(), "x").map(|_| ());
            assert_eq!(&got, want, "{mechanism} {message} tls={tls}");
        }
    }

    #[test]
    fn last_messages_that_do_not_follow_the_first() {
        let mut server = Exchange::new(verifier(), false, None);
        assert_eq!(server.last(b"c=biws,r=,p=AAAA"), Err(ScramError::Binding));
        server.first(MECHANISM, b"n,,n=,r=abc", "x").unwrap();
        for (message, want) in [
            ("c=biws,r=abcy,p=AAAA", ScramError::Malformed),
            ("c=eSws,r=abcx,p=AAAA", ScramError::Binding),
            ("c=biws,r=abcx,p=AAAA", ScramError::Malformed),
            ("c=biws,r=abcx", ScramError::Malformed),
            ("", ScramError::Malformed),
        ] {
            assert_eq!(server.last(message.as_bytes()), Err(want), "{message}");
        }
    }
}
