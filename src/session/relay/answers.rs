//! What the source answers: passed on as it lies, but for what stands in a refusal's place.
//!
//! Invariant: a row is never looked into, and the queue of expected answers moves with the messages that
//! answer and with nothing else.

use super::*;

impl<C: AsyncRead + AsyncWrite + Unpin> Relay<C> {
    /// Puts bytes of the gateway's own behind what is approved so far.
    pub(super) fn edit(&mut self, write: impl FnOnce(&mut BytesMut)) {
        self.settle_approved();
        write(&mut self.client_out);
    }

    pub(super) fn settle_approved(&mut self) {
        if self.approved > 0 {
            let approved = self.lease.inbound.data().get(..self.approved).unwrap_or_default();
            self.client_out.extend_from_slice(approved);
            self.lease.inbound.consume(self.approved);
            self.approved = 0;
        }
    }

    pub(super) fn walk_answers(&mut self) -> Result<(), End> {
        while self.client_out.len() < BACKLOG {
            if self.dropping > 0 {
                let count = self.dropping.min(self.lease.inbound.data().len());
                if count == 0 {
                    return Ok(());
                }
                // Nothing lies before it: what did was settled when it began.
                self.lease.inbound.consume(count);
                self.dropping -= count;
                continue;
            }
            if self.passing == 0 && matches!(self.expects.front(), Some(Expect::Here(_))) {
                self.answer_here();
                continue;
            }
            let unseen = self.lease.inbound.data().get(self.approved..).unwrap_or_default();
            if self.passing > 0 {
                let count = self.passing.min(unseen.len());
                if count == 0 {
                    return Ok(());
                }
                self.approved += count;
                self.passing -= count;
                continue;
            }
            let header = match frame::header(unseen, LARGEST) {
                Ok(None) => {
                    self.make_room(HEADER);
                    return Ok(());
                }
                Ok(Some(header)) => header,
                Err(_) => return Err(End::SourceGone("sent an invalid message length")),
            };
            let own = matches!(self.expects.front(), Some(Expect::Own(_)));
            match header.kind {
                _ if own => {
                    if header.size > INSPECTED {
                        return Err(End::SourceGone("answered the gateway with too much"));
                    }
                    if unseen.len() < header.size {
                        self.make_room(header.size);
                        return Ok(());
                    }
                    self.own_answer(header.kind, header.size)?;
                }
                // Rows and copy data: the bulk of all traffic.
                b'D' | b'd' | b'V' => {
                    if self.cuts(header.size) {
                        self.drop_message(header.size);
                    } else {
                        self.passing = header.size;
                    }
                }
                b'A' | b'N' => self.passing = header.size,
                b'T' | b't' | b'H' => {
                    if header.kind == b'T' {
                        self.answered_describe();
                    }
                    if self.muted {
                        self.drop_message(header.size);
                    } else {
                        self.passing = header.size;
                    }
                }
                _ if header.size > INSPECTED => {
                    if header.kind != b'E' {
                        return Err(End::SourceGone("sent an oversized message"));
                    }
                    // Too long to look into: an error all the same.
                    self.answered_error();
                    if self.muted {
                        self.drop_message(header.size);
                    } else {
                        self.passing = header.size;
                    }
                }
                kind => {
                    if unseen.len() < header.size {
                        self.make_room(header.size);
                        return Ok(());
                    }
                    self.answer(kind, header.size)?;
                }
            }
        }
        Ok(())
    }

    /// Room for a message of `size` bytes behind what is approved.
    fn make_room(&mut self, size: usize) {
        self.lease.inbound.reserve(self.approved + size);
    }

    fn pass(&mut self, size: usize) {
        if self.muted {
            return self.hide(size);
        }
        self.approved += size;
    }

    /// A message goes nowhere, however much of it is there yet.
    fn drop_message(&mut self, size: usize) {
        self.settle_approved();
        self.dropping = size;
    }

    pub(super) fn hide(&mut self, size: usize) {
        self.settle_approved();
        self.lease.inbound.consume(size);
    }

    fn answered_describe(&mut self) {
        if matches!(self.expects.front(), Some(Expect::Describe | Expect::QuietDescribe)) {
            self.expects.pop_front();
        }
    }

    /// One whole message of the source, of a kind that moves the queue.
    fn answer(&mut self, kind: u8, size: usize) -> Result<(), End> {
        let unexpected = Err(End::SourceGone("answered what nobody asked"));
        match (kind, self.expects.front()) {
            (b'S', _) => return self.parameter_changed(size),
            (b'Z', Some(Expect::Query(_) | Expect::Sync)) => return self.ready_for_query(size),
            (b'E', _) => return self.error(size),
            (b'1', Some(Expect::Parse(_) | Expect::ParseUnnamed(_)))
            | (b'2', Some(Expect::Bind { .. }))
            | (b'3', Some(Expect::Close(_) | Expect::CloseUnnamed(_) | Expect::ClosePortal(_)))
            | (b'n', Some(Expect::Describe)) => {
                self.answered(true);
                self.pass(size);
            }
            (b'1', Some(Expect::Mapped(Some(_), _) | Expect::Again(_) | Expect::UnderOwnName(..))) => {
                self.answered(true);
                self.pass(size);
            }
            (
                b'1',
                Some(
                    Expect::QuietParse(_)
                    | Expect::Mapped(None, _)
                    | Expect::QuietUnnamed
                    | Expect::QuietAlias(_),
                ),
            )
            | (b'2', Some(Expect::QuietBind))
            | (b'3', Some(Expect::QuietClose(_) | Expect::QuietAliasClose(_)))
            | (b'n', Some(Expect::QuietDescribe)) => {
                self.answered(true);
                self.hide(size);
            }
            (b's', Some(Expect::Execute(_))) => {
                self.expects.pop_front();
                if let Some(readings) = &mut self.readings {
                    readings.answered(true);
                }
                self.works.answered(true, true);
                self.statement_ended();
                self.pass(size);
            }
            (b'C' | b'I', Some(Expect::Execute(_))) => {
                self.tell_rows(size);
                self.answered(true);
                self.statement_ended();
                self.pass(size);
            }
            (b'C' | b'I', Some(Expect::Query(_))) => {
                self.tell_rows(size);
                self.statement_ended();
                self.pass(size);
            }
            (b'c', Some(Expect::Query(_) | Expect::Execute(_))) => self.pass(size),
            (b'G', Some(Expect::Query(_) | Expect::Execute(_))) => {
                let writes = self.judge.mode() == Mode::ReadWrite;
                let Some(copy_in) = CopyIn::begun(writes) else {
                    return Err(End::SourceGone("began a COPY FROM STDIN that nobody admitted"));
                };
                // The source passes over a Sync that it reads while it copies.
                while matches!(self.expects.get(1), Some(Expect::Sync)) {
                    self.expects.remove(1);
                }
                self.copy_in = Some(copy_in);
                self.pass(size);
            }
            (_, Some(Expect::Refused(_))) => {
                return Err(End::SourceGone("accepted the text that stands for a refused statement"));
            }
            _ => return unexpected,
        }
        Ok(())
    }

    pub(super) fn ready_for_query(&mut self, size: usize) -> Result<(), End> {
        let body = self.body(size);
        let Some(status) = body.first().copied().and_then(Status::from_byte) else {
            return Err(End::SourceGone("reported an unknown transaction status"));
        };
        self.answered(!self.failed);
        self.works.ready(status == Status::Idle, self.failed, self.expects.is_empty());
        self.failed = false;
        self.muted = false;
        self.status = status;
        self.statement_ended();
        self.copy_in = None;
        self.alias_error = None;
        let settled = self.expects.is_empty();
        if status == Status::Idle {
            self.statements.transaction_ended(settled);
        }
        self.pass(size);
        Ok(())
    }

    /// What comes next has a time of its own, and is not the one that was to be cancelled.
    fn statement_ended(&mut self) {
        self.since = Instant::now();
        match &mut self.cancelling {
            Some(cancelling) if cancelling.request.is_some() => cancelling.missed = true,
            _ => self.cancelling = None,
        }
    }

    /// CommandComplete names the rows of the statement that ends.
    fn tell_rows(&mut self, size: usize) {
        if let Some(mut readings) = self.readings.take() {
            readings.complete(self.body(size));
            self.readings = Some(readings);
        }
    }

    /// What was expected first has its answer, or never will.
    fn answered(&mut self, succeeded: bool) {
        if matches!(self.expects.front(), Some(Expect::Query(_) | Expect::Execute(_))) {
            self.works.answered(false, succeeded);
        }
        if let Some(readings) = &mut self.readings
            && matches!(self.expects.front(), Some(Expect::Query(_) | Expect::Execute(_)))
        {
            readings.answered(false);
        }
        match self.expects.pop_front() {
            Some(Expect::Query(change) | Expect::Execute(change)) => self.changed(change, succeeded),
            Some(Expect::Parse(ticket)) => self.statements.parsed(Some(&ticket), succeeded),
            Some(Expect::ParseUnnamed(number)) => {
                if !succeeded {
                    self.unnamed_is_here(false);
                }
                self.statements.parsed(None, succeeded);
                self.leftover.answered(number, succeeded);
            }
            Some(Expect::CloseUnnamed(number) | Expect::QuietClose(number)) => {
                self.leftover.answered(number, succeeded);
            }
            Some(Expect::Bind { unnamed: true, .. }) => {
                self.statements.bound(succeeded);
                if succeeded {
                    self.works.anew(b"");
                }
            }
            Some(Expect::Mapped(ticket, number)) => {
                self.statement_answered(number, succeeded);
                if let Some(ticket) = ticket {
                    self.statements.parsed(Some(&ticket), succeeded);
                    self.statements.heard_about(&ticket.0);
                }
            }
            Some(Expect::Again(ticket)) => {
                self.statements.parsed(Some(&ticket), succeeded);
                self.statements.heard_about(&ticket.0);
            }
            Some(Expect::UnderOwnName(ticket, number)) => {
                self.statements.parsed(Some(&ticket), succeeded);
                self.statements.heard_about(&ticket.0);
                self.alias_answered(&ticket.0, number, succeeded);
            }
            Some(Expect::QuietAlias(alias)) => self.alias_answered(&alias.0, alias.1, succeeded),
            Some(Expect::QuietAliasClose(name)) if succeeded => self.alias_closed(&name),
            Some(Expect::QuietUnnamed) if !succeeded => self.unnamed_is_here(false),
            Some(Expect::Here(here)) => self.answered_here(*here, succeeded),
            Some(Expect::Close(Some(ticket))) if succeeded => self.statements.closed(&ticket),
            Some(Expect::ClosePortal(Some(ticket))) if succeeded => {
                self.statements.portal_closed(&ticket);
                self.works.anew(&ticket.0);
            }
            _ => {}
        }
    }

    /// What is answered without the source comes first now.
    fn answer_here(&mut self) {
        let Some(Expect::Here(here)) = self.expects.front() else { return };
        let kind = if matches!(**here, Expect::Parse(_)) { b'1' } else { b'3' };
        self.edit(|out| backend::empty_message(kind, out));
        self.answered(true);
    }

    fn answered_here(&mut self, here: Expect, succeeded: bool) {
        match here {
            Expect::Parse(ticket) => {
                self.statements.parsed(Some(&ticket), succeeded);
                self.statements.heard_about(&ticket.0);
            }
            Expect::Close(Some(ticket)) => {
                if succeeded {
                    self.statements.closed(&ticket);
                }
                self.statements.heard_about(&ticket.0);
            }
            _ => {}
        }
    }

    pub(super) fn body(&self, size: usize) -> &[u8] {
        self.lease.inbound.data().get(self.approved + HEADER..self.approved + size).unwrap_or_default()
    }

    pub(super) fn error(&mut self, size: usize) -> Result<(), End> {
        self.failed = true;
        self.copy_in = None;
        let body = self.body(size);
        let sqlstate = backend::error_field(body, b'C').unwrap_or_default();
        let is = |state: SqlState| sqlstate == state.as_str().as_bytes();
        let fatal = matches!(backend::error_field(body, b'V'), Some(b"FATAL" | b"PANIC"));
        let is_missing = is(SqlState::INVALID_SQL_STATEMENT_NAME);
        let replaced = match self.expects.front() {
            // What stands for the refused statement names a type that does not exist. Any other error,
            // such as that of a cancel or of the source's own end, is not about it.
            Some(Expect::Refused(refused))
                if is(SqlState::UNDEFINED_OBJECT)
                    || (refused.always && is(SqlState::IN_FAILED_SQL_TRANSACTION)) =>
            {
                Some(refused.error.clone())
            }
            _ if is(SqlState::QUERY_CANCELED) => {
                self.cancelling.as_ref().map(|cancelling| (*cancelling.why).clone())
            }
            _ => None,
        };
        // The plan that the source has for a text does not fit any more; a driver that prepares it again shall get a
        // new one.
        if (is(SqlState::FEATURE_NOT_SUPPORTED) || is_missing)
            && let Some(Expect::Bind { text: Some(text), .. }) = self.expects.front()
        {
            self.outlived(text);
        }
        self.farewell |= fatal;
        if !fatal && self.is_before_a_query() {
            // The Query behind it fails too, and has one answer.
            let error = self.lease.inbound.data().get(self.approved..self.approved + size);
            self.alias_error = error.map(bytes::Bytes::copy_from_slice);
            self.hide(size);
            self.answered_error();
            return Ok(());
        }
        if is_missing
            && matches!(self.expects.front(), Some(Expect::Query(_)))
            && let Some(error) = self.alias_error.take()
        {
            // The statement is not there because it could not be prepared: that is what PostgreSQL says of it.
            self.hide(size);
            self.edit(|out| out.extend_from_slice(&error));
            self.answered_error();
            return Ok(());
        }
        match (replaced, self.expects.front()) {
            // The client has its error already; that the session ends is another matter.
            _ if self.muted && !fatal => self.hide(size),
            _ if self.muted => self.approved += size,
            (Some(error), _) => {
                self.hide(size);
                self.edit(|out| error.encode(out));
            }
            (None, Some(Expect::QuietParse(1..))) => self.shift_position(size),
            (None, _) => self.pass(size),
        }
        self.answered_error();
        Ok(())
    }

    /// What is answered first is a client's text under its own name, for a Query that speaks of it.
    fn is_before_a_query(&self) -> bool {
        let quiet = |expect: &&Expect| {
            matches!(expect, Expect::QuietAlias(_) | Expect::QuietClose(_) | Expect::QuietAliasClose(_))
        };
        matches!(self.expects.front(), Some(Expect::QuietAlias(_)))
            && matches!(self.expects.iter().find(|expect| !quiet(expect)), Some(Expect::Own(Own::Sync)))
    }

    /// Passes an error on; its position counts in the client's own text of several statements.
    fn shift_position(&mut self, size: usize) {
        let before = match self.expects.front() {
            Some(Expect::QuietParse(before)) => *before,
            _ => 0,
        };
        let Some(shifted) = backend::with_position_shifted(self.body(size), before) else {
            return self.pass(size);
        };
        self.hide(size);
        self.edit(|out| out.extend_from_slice(&shifted));
    }

    /// After an error in an extended message the source passes over everything up to Sync.
    fn answered_error(&mut self) {
        self.failed = true;
        self.copy_in = None;
        match self.expects.front() {
            None | Some(Expect::Query(_) | Expect::Sync) => {}
            Some(first) => {
                // PostgreSQL drops the unnamed statement before it looks at the text of another.
                if matches!(first, Expect::ParseUnnamed(_)) && self.is_mapped() {
                    self.answered(false);
                    self.statements.lose_unnamed();
                }
                while !matches!(self.expects.front(), None | Some(Expect::Sync | Expect::Own(_))) {
                    self.answered(false);
                }
                if self.expects.is_empty() && self.skip == Skip::No {
                    self.skip = Skip::Upstream;
                    self.pipeline = true;
                }
            }
        }
    }

    /// The pins must hold as long as the session lives; anything else passes on.
    pub(super) fn parameter_changed(&mut self, size: usize) -> Result<(), End> {
        let Some((name, value)) = backend::parameter(self.body(size)) else {
            return Err(End::SourceGone("sent a parameter that cannot be read"));
        };
        // A writer may bind its own hands.
        let stricter = name == "default_transaction_read_only" && value == "on";
        let broken = self.lease.backend().is_some_and(|backend| backend.pins.broken_by(name, value));
        if broken && !stricter {
            return Err(End::SourceGone("changed a setting that the gateway pins"));
        }
        let (name, value) = (name.to_owned(), value.to_owned());
        if !self.parameter_reported(&name, &value) {
            self.hide(size);
        } else if name == "application_name" {
            let shown = self.shown_name(&value).to_owned();
            self.hide(size);
            self.edit(|out| backend::parameter_status("application_name", &shown, out));
        } else {
            self.approved += size;
        }
        Ok(())
    }
}
