//! A TCP door before a source, which a test opens, shuts and puts somebody else behind.
//!
//! Invariant: its port is taken from the start, so that nobody else gets it while it is shut.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// What whoever comes in meets.
#[derive(Clone, Debug)]
pub enum Behind {
    /// A server: bytes go both ways.
    Server(SocketAddr),
    /// These bytes, then the connection stays open in silence.
    Silence(Vec<u8>),
    /// These bytes, then an orderly end.
    Closes(Vec<u8>),
    /// These bytes, then a reset.
    Resets(Vec<u8>),
}

pub struct Door {
    socket: socket2::Socket,
    address: SocketAddr,
    behind: Arc<Mutex<Behind>>,
    /// Both ends of what goes through to a server.
    through: Arc<Mutex<Vec<TcpStream>>>,
}

impl Door {
    /// Shut: connections are refused.
    pub fn shut() -> Self {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into()).unwrap();
        let address = socket.local_addr().unwrap().as_socket().unwrap();
        Self {
            socket,
            address,
            behind: Arc::new(Mutex::new(Behind::Silence(Vec::new()))),
            through: Arc::default(),
        }
    }

    pub fn open(behind: Behind) -> Self {
        let door = Self::shut();
        door.set(behind);
        door.start();
        door
    }

    pub fn address(&self) -> String {
        self.address.to_string()
    }

    /// For whoever comes from now on.
    pub fn set(&self, behind: Behind) {
        *self.behind.lock().unwrap() = behind;
    }

    /// Breaks what goes through now.
    pub fn cut(&self) {
        for stream in self.through.lock().unwrap().drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// Lets in; the thread ends with the test's process.
    pub fn start(&self) {
        self.socket.listen(128).unwrap();
        let listener = TcpListener::from(self.socket.try_clone().unwrap());
        let (behind, through) = (Arc::clone(&self.behind), Arc::clone(&self.through));
        std::thread::spawn(move || {
            let mut held = Vec::new();
            while let Ok((mut near, _)) = listener.accept() {
                let behind = behind.lock().unwrap().clone();
                if let Behind::Server(server) = behind {
                    let Ok(far) = TcpStream::connect(server) else { continue };
                    let mut ends = through.lock().unwrap();
                    ends.extend([near.try_clone().unwrap(), far.try_clone().unwrap()]);
                    drop(ends);
                    copy(near.try_clone().unwrap(), far.try_clone().unwrap());
                    copy(far, near);
                    continue;
                }
                // Whoever closes with bytes unread resets the connection, and may lose its own answer.
                near.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
                let _ = near.read(&mut [0; 4096]);
                match behind {
                    Behind::Server(_) => {}
                    Behind::Silence(bytes) => {
                        let _ = near.write_all(&bytes);
                        held.push(near);
                    }
                    Behind::Closes(bytes) => drop(near.write_all(&bytes)),
                    Behind::Resets(bytes) => {
                        let _ = near.write_all(&bytes);
                        let _ = socket2::SockRef::from(&near).set_linger(Some(Duration::ZERO));
                    }
                }
            }
        });
    }
}

fn copy(mut from: TcpStream, mut to: TcpStream) {
    std::thread::spawn(move || {
        let _ = std::io::copy(&mut from, &mut to);
        let _ = to.shutdown(Shutdown::Both);
        let _ = from.shutdown(Shutdown::Both);
    });
}
