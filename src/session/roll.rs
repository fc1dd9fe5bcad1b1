//! The roll of sessions: who is there, on what source, how many of each, and the word to go.
//!
//! Invariant: a client is on the roll from the moment it is known until its session has ended, whatever ended it;
//! the counts are those of the roll; it holds no more entries than `max_clients` lets in.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use tokio::sync::oneshot;

use crate::ids::{ClientUser, SourceName};
use crate::sqlstate::SqlState;
use crate::wire::ClientError;

/// All sessions.
#[derive(Default)]
pub struct Roll {
    // std Mutex: never held across an await.
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    last: u64,
    sessions: HashMap<u64, Entry>,
    users: HashMap<ClientUser, usize>,
    sources: HashMap<SourceName, usize>,
}

struct Entry {
    member: Member,
    /// Taken when it is told to go.
    go: Option<oneshot::Sender<()>>,
}

/// One session, as it is listed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    pub id: u64,
    pub user: ClientUser,
    pub source: SourceName,
    pub address: SocketAddr,
    pub since: SystemTime,
}

/// How many sessions there may be; `None`: as many as like.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Most {
    pub of_user: Option<usize>,
    pub of_source: Option<usize>,
}

/// Which bound is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Full {
    User(ClientUser, usize),
    Source(SourceName, usize),
}

impl Full {
    /// In PostgreSQL's own words.
    pub fn error(&self) -> ClientError {
        let (message, hint) = match self {
            Full::User(user, most) => (
                format!("too many connections for role \"{user}\""),
                format!("The gateway's max_clients_per_user is {most}. Whoever runs it can raise that."),
            ),
            Full::Source(source, most) => (
                format!("too many connections for database \"{source}\""),
                format!(
                    "The gateway's max_clients of this source is {most}. Whoever runs it can raise that."
                ),
            ),
        };
        ClientError::fatal(SqlState::TOO_MANY_CONNECTIONS, message).hint(hint)
    }
}

/// Which sessions are meant; all that is given has to fit.
#[derive(Clone, Debug, Default)]
pub struct Whose {
    pub id: Option<u64>,
    pub user: Option<ClientUser>,
    pub source: Option<SourceName>,
}

impl Whose {
    fn fits(&self, member: &Member) -> bool {
        self.id.is_none_or(|id| id == member.id)
            && self.user.as_ref().is_none_or(|user| *user == member.user)
            && self.source.as_ref().is_none_or(|source| *source == member.source)
    }
}

/// A session's place on the roll, until it is dropped.
pub struct Seat {
    roll: Arc<Roll>,
    id: u64,
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut inner = self.roll.lock();
        let Some(entry) = inner.sessions.remove(&self.id) else { return };
        lessen(&mut inner.users, &entry.member.user);
        lessen(&mut inner.sources, &entry.member.source);
    }
}

fn lessen<K: std::hash::Hash + Eq>(counts: &mut HashMap<K, usize>, key: &K) {
    if let Some(count) = counts.get_mut(key) {
        *count -= 1;
        if *count == 0 {
            counts.remove(key);
        }
    }
}

impl Roll {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for a client that is known; `go` is how it hears that it has to go.
    ///
    /// # Errors
    /// There are as many as there may be.
    pub fn sit(
        self: &Arc<Self>,
        user: &ClientUser,
        source: &SourceName,
        address: SocketAddr,
        most: Most,
        go: oneshot::Sender<()>,
    ) -> Result<Seat, Full> {
        let mut inner = self.lock();
        let of_user = inner.users.get(user).copied().unwrap_or(0);
        if let Some(most) = most.of_user.filter(|most| of_user >= *most) {
            return Err(Full::User(user.clone(), most));
        }
        let of_source = inner.sources.get(source).copied().unwrap_or(0);
        if let Some(most) = most.of_source.filter(|most| of_source >= *most) {
            return Err(Full::Source(source.clone(), most));
        }
        inner.users.insert(user.clone(), of_user + 1);
        inner.sources.insert(source.clone(), of_source + 1);
        inner.last += 1;
        let id = inner.last;
        let member =
            Member { id, user: user.clone(), source: source.clone(), address, since: SystemTime::now() };
        inner.sessions.insert(id, Entry { member, go: Some(go) });
        Ok(Seat { roll: Arc::clone(self), id })
    }

    /// At most `most` sessions, the oldest first, and how many there are in all.
    pub fn list(&self, whose: &Whose, most: usize) -> (Vec<Member>, usize) {
        let inner = self.lock();
        let mut ids: Vec<u64> = inner
            .sessions
            .values()
            .map(|entry| &entry.member)
            .filter(|m| whose.fits(m))
            .map(|m| m.id)
            .collect();
        ids.sort_unstable();
        let listed = ids.iter().take(most).filter_map(|id| inner.sessions.get(id));
        (listed.map(|entry| entry.member.clone()).collect(), ids.len())
    }

    /// Tells sessions to go, each once; says how many were told now.
    pub fn end(&self, whose: &Whose) -> usize {
        let told: Vec<_> = {
            let mut inner = self.lock();
            let meant = inner.sessions.values_mut().filter(|entry| whose.fits(&entry.member));
            meant.filter_map(|entry| entry.go.take()).collect()
        };
        // Whoever has gone by then need not hear it.
        told.into_iter().map(|go| go.send(())).filter(Result::is_ok).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sit(
        roll: &Arc<Roll>,
        user: &str,
        source: &str,
        most: Most,
    ) -> Result<(Seat, oneshot::Receiver<()>), Full> {
        let (go, gone) = oneshot::channel();
        let address = "127.0.0.1:1".parse().unwrap();
        roll.sit(&ClientUser::new(user), &SourceName::new(source), address, most, go).map(|seat| (seat, gone))
    }

    #[test]
    fn places_are_counted_and_given_back() {
        let roll = Arc::<Roll>::default();
        let most = Most { of_user: Some(2), of_source: Some(3) };
        let seats: Vec<_> =
            [("a", "s"), ("a", "t"), ("b", "s")].map(|(user, source)| sit(&roll, user, source, most)).into();
        assert!(seats.iter().all(Result::is_ok));
        let error = sit(&roll, "a", "u", most).err().unwrap().error();
        assert_eq!(
            (error.sqlstate.as_str(), &*error.message),
            ("53300", "too many connections for role \"a\"")
        );
        let third = sit(&roll, "c", "s", most).unwrap();
        let error = sit(&roll, "d", "s", most).err().unwrap().error();
        assert_eq!(error.message, "too many connections for database \"s\"");
        assert!(sit(&roll, "d", "t", most).is_ok());
        drop((seats, third));
        let inner = roll.lock();
        assert!(inner.sessions.is_empty() && inner.users.is_empty() && inner.sources.is_empty());
    }

    #[test]
    fn who_is_meant_is_told_once_and_nobody_else() {
        let roll = Arc::<Roll>::default();
        let mut seats: Vec<_> = [("a", "s"), ("a", "t"), ("b", "s")]
            .map(|(user, source)| sit(&roll, user, source, Most::default()).ok().unwrap())
            .into();
        let whose = |user: &str, source: Option<&str>| Whose {
            id: None,
            user: Some(ClientUser::new(user)),
            source: source.map(SourceName::new),
        };
        assert_eq!(roll.end(&whose("a", Some("t"))), 1);
        assert_eq!(roll.end(&whose("a", None)), 1);
        assert_eq!(roll.end(&whose("a", None)), 0);
        assert_eq!(roll.end(&whose("nobody", None)), 0);
        let heard: Vec<bool> = seats.iter_mut().map(|(_, gone)| gone.try_recv().is_ok()).collect();
        assert_eq!(heard, [true, true, false]);
        let (listed, total) = roll.list(&Whose::default(), 2);
        assert_eq!((listed.iter().map(|member| member.id).collect::<Vec<_>>(), total), (vec![1, 2], 3));
        assert_eq!(roll.end(&Whose { id: Some(3), ..Whose::default() }), 1);
    }
}
