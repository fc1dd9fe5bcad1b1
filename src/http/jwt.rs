//! Who calls the API: bearer tokens (RFC 6750, RFC 7519) of one issuer.
//!
//! Invariant: a caller is known only by a token whose signature, issuer, audience and times all hold, with a key that
//! the issuer publishes for that algorithm; no symmetric one and no `none` is ever taken.

use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Algorithm, Validation, decode, decode_header};
use serde::Deserialize;

use super::jwks::{KeyError, Keys};
use super::origin;
use super::problem::Problem;
use crate::audit::event::{Actor, SYSTEM};
use crate::config::JwtAuth;
use crate::metrics::{HttpMetrics, HttpRefusal};

/// Longest token, in bytes; the header that carries it is bounded, too.
const TOKEN_LIMIT: usize = 8 << 10;
/// How far the issuer's clock may be off, in seconds.
const LEEWAY: u64 = 30;
/// Longest name that goes into the audit trail, in bytes.
const NAME_LIMIT: usize = 256;

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    Read,
    /// To change something.
    Admin,
}

/// Decides who calls.
pub enum Door {
    /// Nobody is asked; whoever reaches the loopback is an admin, but not the pages of a browser there. Our own ones
    /// come by `https` with `tls`, and by `http` without.
    Open {
        tls: bool,
    },
    Jwt(Box<Issuer>),
}

/// Whose tokens count.
pub struct Issuer {
    pub auth: JwtAuth,
    pub keys: Keys,
}

/// Why somebody is not let in.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Refused {
    Missing,
    Token(String),
    Role(String),
    Origin,
    Keys,
}

#[derive(Deserialize)]
struct Claims {
    // Typed strictly: what is malformed is no token, rather than one without that claim.
    #[serde(rename = "exp")]
    _expires: u64,
    #[serde(rename = "nbf", default)]
    _not_before: Option<u64>,
    // One issuer, where the library would take a list.
    #[serde(rename = "iss")]
    _issuer: String,
    #[serde(rename = "aud")]
    _audience: Names,
    sub: String,
    #[serde(default)]
    preferred_username: Option<String>,
    #[serde(default)]
    roles: Names,
    #[serde(default)]
    groups: Names,
    #[serde(default)]
    realm_access: Realm,
}

#[derive(Default, Deserialize)]
struct Realm {
    #[serde(default)]
    roles: Names,
}

/// One name or several.
#[derive(Deserialize)]
#[serde(untagged)]
enum Names {
    One(String),
    Many(Vec<String>),
}

impl Default for Names {
    fn default() -> Self {
        Names::Many(Vec::new())
    }
}

impl Names {
    fn have(&self, name: &str) -> bool {
        match self {
            Names::One(one) => one == name,
            Names::Many(many) => many.iter().any(|one| one == name),
        }
    }
}

impl Door {
    /// Who calls, if they may do what they ask for; or the answer that says why not.
    ///
    /// # Errors
    /// 401, 403 or 503, as `application/problem+json`.
    pub async fn enter(
        &self,
        headers: &HeaderMap,
        need: Need,
        metrics: &HttpMetrics,
    ) -> Result<Actor, Box<Response>> {
        let known = match self {
            Door::Open { tls } if !origin::is_local(headers, *tls) => Err(Refused::Origin),
            Door::Open { .. } => Ok(Actor::Admin { name: "anonymous".into(), subject: "anonymous".into() }),
            Door::Jwt(issuer) => known(&issuer.auth, &issuer.keys, headers, need).await,
        };
        known.map_err(|refused| {
            metrics.refused(match &refused {
                Refused::Missing => HttpRefusal::Missing,
                Refused::Token(_) => HttpRefusal::Token,
                Refused::Role(_) => HttpRefusal::Role,
                Refused::Origin => HttpRefusal::Origin,
                Refused::Keys => HttpRefusal::Keys,
            });
            Box::new(refused.into_response())
        })
    }
}

async fn known(auth: &JwtAuth, keys: &Keys, headers: &HeaderMap, need: Need) -> Result<Actor, Refused> {
    let mut given = headers.get_all(header::AUTHORIZATION).iter();
    let (Some(value), None) = (given.next(), given.next()) else { return Err(Refused::Missing) };
    let text = value.to_str().map_err(|_| Refused::Missing)?;
    let (scheme, token) = text.split_once(' ').ok_or(Refused::Missing)?;
    if !scheme.eq_ignore_ascii_case("bearer") {
        return Err(Refused::Missing);
    }
    let token = token.trim();
    if token.len() > TOKEN_LIMIT {
        return Err(Refused::Token(format!("it is longer than {TOKEN_LIMIT} bytes")));
    }
    let header = decode_header(token).map_err(|error| Refused::Token(reason(error.kind())))?;
    // Before any key is looked for: nobody is asked for the sake of a token that cannot be good.
    if !PUBLIC.contains(&header.alg) {
        return Err(Refused::Token("it is signed with an algorithm that is not taken here".to_owned()));
    }
    // RFC 7515, section 4.1.11: what is critical and not known makes the token one that cannot be judged.
    if header.crit.is_some() {
        return Err(Refused::Token("it needs an extension (crit) that is not known here".to_owned()));
    }
    let key = keys.find(header.kid.as_deref(), header.alg).await.map_err(|error| match error {
        KeyError::Unknown | KeyError::Unsuited => Refused::Token(error.to_string()),
        KeyError::NoKeys(_) => Refused::Keys,
    })?;
    let mut validation = Validation::new(header.alg);
    validation.leeway = LEEWAY;
    validation.validate_nbf = true;
    validation.set_issuer(&[&auth.issuer]);
    validation.set_audience(&[&auth.audience]);
    validation.set_required_spec_claims(&["exp", "iss", "aud", "sub"]);
    let claims = decode::<Claims>(token, &key.decoding, &validation)
        .map_err(|error| Refused::Token(reason(error.kind())))?
        .claims;
    let role = auth.admin_role.as_str();
    let admin = claims.roles.have(role) || claims.groups.have(role) || claims.realm_access.roles.have(role);
    if need == Need::Admin && !admin {
        return Err(Refused::Role(auth.admin_role.clone()));
    }
    let short = |name: &str| -> std::sync::Arc<str> {
        let end = (0..=NAME_LIMIT.min(name.len())).rev().find(|end| name.is_char_boundary(*end));
        name.get(..end.unwrap_or(0)).unwrap_or_default().into()
    };
    if claims.sub.is_empty() {
        return Err(Refused::Token("its sub is empty".to_owned()));
    }
    let name = claims.preferred_username.as_deref().filter(|name| !name.is_empty()).unwrap_or(&claims.sub);
    if name == SYSTEM {
        return Err(Refused::Token(format!("{SYSTEM} is what the audit trail calls the gateway itself")));
    }
    Ok(Actor::Admin { name: short(name), subject: short(&claims.sub) })
}

/// Only what a published key can verify.
const PUBLIC: &[Algorithm] = &[
    Algorithm::RS256,
    Algorithm::RS384,
    Algorithm::RS512,
    Algorithm::PS256,
    Algorithm::PS384,
    Algorithm::PS512,
    Algorithm::ES256,
    Algorithm::ES384,
    Algorithm::EdDSA,
];

/// In words of our own, since an error may quote the token.
fn reason(kind: &ErrorKind) -> String {
    let text = match kind {
        ErrorKind::ExpiredSignature => "it has expired; get a new one",
        ErrorKind::ImmatureSignature => "it is not valid yet",
        ErrorKind::InvalidSignature => "its signature is not the issuer's",
        ErrorKind::InvalidIssuer => "it is of another issuer",
        ErrorKind::InvalidAudience => "it is meant for another audience",
        ErrorKind::MissingRequiredClaim(_) => "it lacks one of exp, iss, aud and sub",
        ErrorKind::InvalidAlgorithm | ErrorKind::UnsupportedAlgorithm => {
            "it is signed with an algorithm that is not taken here"
        }
        _ => "it cannot be read",
    };
    text.to_owned()
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let (status, error, detail) = match self {
            Refused::Missing => (
                StatusCode::UNAUTHORIZED,
                "Bearer",
                "a bearer token of the configured issuer is needed: Authorization: Bearer …".to_owned(),
            ),
            Refused::Token(why) => (
                StatusCode::UNAUTHORIZED,
                "Bearer error=\"invalid_token\"",
                format!("the token is not accepted: {why}"),
            ),
            Refused::Role(role) => (
                StatusCode::FORBIDDEN,
                "Bearer error=\"insufficient_scope\"",
                format!("the role {role:?} is needed for this"),
            ),
            Refused::Origin => {
                let detail = "http.auth is \"none\", so only programs of this machine are answered, at a loopback \
                              address: no page of a browser, and no other host name. Tokens change that: see http.auth";
                return Problem::detail(StatusCode::FORBIDDEN, detail).into_response();
            }
            Refused::Keys => {
                let detail = "the issuer's keys cannot be had at the moment; the gateway's log says why";
                return Problem::detail(StatusCode::SERVICE_UNAVAILABLE, detail).into_response();
            }
        };
        let mut answer = Problem::detail(status, &detail).into_response();
        answer.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static(error));
        answer
    }
}
