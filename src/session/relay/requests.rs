//! What the client says: each message judged, and sent on, refused, or answered here.
//!
//! Invariant: nothing of a refused message goes upstream, and whatever does goes with its place in the queue of
//! expected answers.

use super::limits::Allowed;
use super::*;
use crate::sql::tag;
use crate::wire::Severity;

/// A name for a Parse of the gateway's own, which never succeeds and so never exists.
const OWN_NAME: &[u8] = b"fedgate refused a statement";

impl<C: AsyncRead + AsyncWrite + Unpin> Relay<C> {
    pub(super) fn take_client_messages(&mut self) -> Result<(), End> {
        if self.closing {
            // Nothing counts behind Terminate.
            self.client_in.consume(self.client_in.data().len());
            return Ok(());
        }
        if self.cancelling.as_ref().is_some_and(|cancelling| cancelling.request.is_some()) {
            return Ok(());
        }
        while self.lease.outbound.len() < BACKLOG
            && self.client_out.len() < BACKLOG
            && self.expects.len() < self.limits.pipeline
            && !self.closing
        {
            if let Some(kind) = self.client_in.data().first()
                && !is_known(*kind)
            {
                // Before its length: nothing is known of that either.
                return Err(protocol(format!("invalid frontend message type {kind}")));
            }
            let limit = self.limits.message_bytes;
            let header = match frame::header(self.client_in.data(), limit) {
                Ok(None) => {
                    self.client_in.reserve(HEADER);
                    return Ok(());
                }
                Ok(Some(header)) => header,
                Err(error) => return Err(protocol(error.to_string())),
            };
            if !known(header.kind) {
                // At once: its length means nothing, and what it announces may never come.
                return Err(protocol(format!("invalid frontend message type {}", header.kind)));
            }
            if header.size > longest(header.kind, limit) {
                return Err(protocol(format!(
                    "invalid message length in message of type {:#04x}",
                    header.kind
                )));
            }
            if self.client_in.data().len() < header.size {
                self.client_in.reserve(header.size);
                return Ok(());
            }
            // Taken out while it is handled, so that the handlers may borrow the session.
            let client_in = self.client_in.take();
            let body = client_in.data().get(HEADER..header.size).unwrap_or_default();
            let handled = match self.handle(header.kind, body) {
                Ok(handled) => handled,
                Err(Malformed) => self.refuse_malformed(header.kind),
            };
            self.client_in = client_in;
            if self.judge.is_revoked() {
                return Err(End::Fatal(shutdown()));
            }
            match handled {
                Handled::Done => {
                    self.flushed = false;
                    self.urged = false;
                    self.judge.forget_long();
                    self.works.dealt_with();
                    self.client_in.consume(header.size);
                }
                Handled::Wait => {
                    if !self.flushed {
                        self.flushed = true;
                        self.lease.outbound.flush();
                    }
                    return Ok(());
                }
                Handled::Judging | Handled::Leasing | Handled::Paused => return Ok(()),
                Handled::End(end) => return Err(end),
            }
        }
        if self.pipeline && self.expects.len() >= self.limits.pipeline && !self.urged {
            // The source may keep its short answers until a Sync, which does not come before there is room for it.
            self.urged = true;
            self.lease.outbound.flush();
        }
        Ok(())
    }

    fn handle(&mut self, kind: u8, body: &[u8]) -> Result<Handled, Malformed> {
        if self.copy_in.is_some() && self.handle_copy_in(kind, body) {
            return Ok(Handled::Done);
        }
        match kind {
            b'X' if self.expects.is_empty() => return Ok(Handled::End(End::Client)),
            // PostgreSQL ends without a word, too: nobody has asked for the answers yet.
            b'X' if self.shared.is_some() && self.pipeline => return Ok(Handled::End(End::Client)),
            b'X' => {
                if self.shared.is_none() {
                    self.lease.outbound.terminate();
                }
                self.closing = true;
                return Ok(Handled::Done);
            }
            b'S' => {
                if let Some(handled) = self.before_work(kind, body) {
                    return Ok(handled);
                }
                return Ok(self.handle_sync());
            }
            // A writer need not wait for CopyInResponse before it sends what it copies.
            b'd' | b'c' | b'f' if self.may_copy_in() => return Ok(Handled::Wait),
            b'd' | b'c' | b'f' => return Ok(Handled::Done), // stray: PostgreSQL passes over them too
            _ => {}
        }
        if let Some(handled) = self.before_work(kind, body) {
            return Ok(handled);
        }
        if self.skip != Skip::No {
            return Ok(Handled::Done);
        }
        match kind {
            b'Q' => self.handle_query(frontend::query(body)?),
            b'F' => {
                if self.may_be_passed_over() {
                    return Ok(Handled::Wait);
                }
                if let Some(handled) = self.unleased(b'F', OWN_NAME, b"") {
                    return Ok(handled);
                }
                match self.judge.may_call().and_then(|()| judge_function_call(body)) {
                    Ok(permit) => {
                        if let Allowed::No(error) = self.allowed_call() {
                            return Ok(self.refuse_query(OWN_NAME, error, false));
                        }
                        self.judge.count_admitted(StatementClass::Read);
                        if let Some(readings) = &mut self.readings {
                            readings.next(self.judge.reading(b"", b"", StatementClass::Read), 0);
                        }
                        self.lease.outbound.function_call(&permit);
                        self.expect(Expect::Query(Change::None));
                        self.end_pipeline();
                        Ok(Handled::Done)
                    }
                    Err(refusal) => {
                        let error = self.judge.refused(b"", &refusal);
                        Ok(self.refuse_query(OWN_NAME, error, false))
                    }
                }
            }
            b'P' => self.handle_parse(frontend::parse(body)?),
            b'B' => self.handle_bind(frontend::bind(body)?, body),
            b'D' => {
                let target = frontend::target(body)?;
                if let Target::Portal(b"") = target
                    && let Some(handled) = self.missing_unnamed_portal()
                {
                    return Ok(handled);
                }
                if let Some(handled) = self.unleased(kind, OWN_NAME, b"") {
                    return Ok(handled);
                }
                if matches!(target, Target::Statement(b"")) && !self.drop_leftover() {
                    return Ok(Handled::Wait);
                }
                if let Target::Statement(name) = target
                    && let Err(error) = self.statements.describe(name, &mut self.judge)
                {
                    return Ok(self.refuse_extended(OWN_NAME, error, false));
                }
                match target {
                    Target::Statement(statement) if self.is_mapped() => match self.named(statement) {
                        Named::Is(name, _) => self.lease.outbound.describe(Target::Statement(&name)),
                        Named::Wait => return Ok(Handled::Wait),
                        Named::Refused(error) => return Ok(self.refuse_extended(OWN_NAME, error, true)),
                    },
                    _ => self.lease.outbound.describe(target),
                }
                self.expect_extended(Expect::Describe);
                Ok(Handled::Done)
            }
            b'E' => self.handle_execute(frontend::execute(body)?, body),
            b'C' => {
                let target = frontend::target(body)?;
                if let Some(handled) = self.unleased(kind, OWN_NAME, b"") {
                    return Ok(handled);
                }
                if let Target::Statement(name) = target
                    && self.is_mapped()
                    && let Some(handled) = self.close_mapped(name)
                {
                    return Ok(handled);
                }
                let closing = match target {
                    Target::Statement(b"") => {
                        Expect::CloseUnnamed(self.leftover.replaced(self.statements.segment()))
                    }
                    Target::Statement(name) => Expect::Close(self.statements.closing(name)),
                    Target::Portal(name) => Expect::ClosePortal(self.statements.closing_portal(name)),
                };
                self.lease.outbound.close(target);
                self.expect_extended(closing);
                Ok(Handled::Done)
            }
            _ => {
                // Without a session nothing is on its way, and nobody would take the message from the buffer.
                if self.lease.is_attached() {
                    self.lease.outbound.flush();
                }
                Ok(Handled::Done)
            }
        }
    }

    /// Nothing, when there is a session to send to; otherwise what becomes of a message of this kind, which brings `sql`.
    fn unleased(&mut self, kind: u8, name: &[u8], sql: &[u8]) -> Option<Handled> {
        match self.leased() {
            Leased::Yes => None,
            Leased::Wait => {
                if tag::begins_block(sql) {
                    // There is nothing to cancel yet, and a refusal would end the session.
                    self.wait_uncancelled();
                }
                Some(Handled::Leasing)
            }
            Leased::No(error) if error.severity == Severity::Fatal => Some(turned_away(error)),
            Leased::No(error) if tag::begins_block(sql) => Some(turned_away(error)),
            Leased::No(error) if matches!(kind, b'Q' | b'F') => Some(self.refuse_query(name, error, true)),
            Leased::No(error) => Some(self.refuse_extended(name, error, true)),
        }
    }

    /// Before what may begin something at the source, which may be paused; nothing: it may.
    fn before_work(&mut self, kind: u8, body: &[u8]) -> Option<Handled> {
        // Nothing reaches the source by these, or what they belong to has begun.
        if self.pipeline || self.skip != Skip::No || kind == b'H' {
            return None;
        }
        if !self.expects.is_empty() || self.passing > 0 {
            if self.doorway.is_paused() {
                // What was sent ends by itself, and shows then whether a transaction is open.
                return Some(Handled::Paused);
            }
            if self.doorway.is_in() {
                return None;
            }
            // Nothing but what the gateway has asked itself, such as for the client's settings.
        }
        if self.status != Status::Idle {
            return None;
        }
        match self.doorway.enter() {
            Entry::Yes => None,
            Entry::NotYet => Some(Handled::Paused),
            Entry::No(error) if begins_block(kind, body) => Some(turned_away(error)),
            Entry::No(error) => Some(match kind {
                b'Q' | b'F' | b'S' => self.refuse_query(OWN_NAME, error, true),
                // A Parse without a name takes the unnamed statement with it, whatever becomes of it.
                b'P' if body.first() == Some(&0) => self.refuse_extended(b"", error, true),
                _ => self.refuse_extended(OWN_NAME, error, true),
            }),
        }
    }

    pub(super) fn expect(&mut self, expect: Expect) {
        if self.expects.is_empty() {
            self.since = Instant::now();
        }
        if let Some(readings) = &mut self.readings
            && matches!(expect, Expect::Query(_) | Expect::Execute(_))
        {
            readings.sent();
        }
        if matches!(expect, Expect::Query(_) | Expect::Execute(_)) {
            self.works.sent();
        }
        self.expects.push_back(expect);
    }

    /// What is told of the statement that is sent next.
    fn read_next(&mut self, sql: &[u8], admitted: &Admitted) {
        self.next_within_limits(sql, admitted);
        if let Some(readings) = &mut self.readings {
            readings.next(self.judge.reading(sql, admitted.permit.text(), admitted.class), 0);
        }
    }

    pub(super) fn expect_extended(&mut self, expect: Expect) {
        self.pipeline = true;
        self.expect(expect);
    }

    /// A Sync was sent: what comes next does not hang on what came before.
    fn end_pipeline(&mut self) {
        self.pipeline = false;
        self.statements.new_segment();
    }

    /// A Query, or what stands for one, was sent.
    fn end_query(&mut self) {
        self.pipeline = false;
        self.statements.new_query();
        if self.is_mapped() {
            // As the source does with its own.
            self.statements.forget_unnamed();
            self.unnamed_is_here(false);
        }
    }

    /// Nothing is under way, not even half a notice, no block and no implicit transaction is open.
    pub(super) fn at_rest(&self) -> bool {
        self.expects.is_empty() && !self.pipeline && self.status == Status::Idle && self.passing == 0
    }

    /// Whether the source passes over what is sent now if anything before it fails.
    fn may_be_passed_over(&self) -> bool {
        let ends = |expect: &&Expect| matches!(expect, Expect::Sync | Expect::Own(_));
        let since_sync = self.expects.iter().rev().take_while(|expect| !ends(expect));
        since_sync.into_iter().any(|expect| !matches!(expect, Expect::Query(_)))
    }

    /// Whether a statement under way may turn out to copy from the client.
    fn may_copy_in(&self) -> bool {
        self.skip == Skip::No
            && self.judge.mode() == Mode::ReadWrite
            && self.expects.iter().any(|expect| matches!(expect, Expect::Query(_) | Expect::Execute(_)))
    }

    fn handle_sync(&mut self) -> Handled {
        // Without a session nothing is under way, so there is nothing that the source would have to say.
        let local = self.skip == Skip::Local || (!self.lease.is_attached() && self.at_rest());
        if local && self.passing == 0 {
            self.skip = Skip::No;
            self.edit(|out| backend::ready_for_query(Status::Idle, out));
            return Handled::Done;
        }
        if let Some(handled) = self.unleased(b'S', OWN_NAME, b"") {
            return handled;
        }
        self.skip = Skip::No;
        self.lease.outbound.sync();
        self.expect(Expect::Sync);
        self.end_pipeline();
        Handled::Done
    }

    fn handle_query(&mut self, sql: &[u8]) -> Result<Handled, Malformed> {
        match self.judge.readiness(sql) {
            Readiness::Now => {}
            Readiness::Wait => return Ok(Handled::Judging),
            Readiness::Busy(_) if self.may_be_passed_over() => return Ok(Handled::Wait),
            Readiness::Busy(error) => return Ok(self.refuse_query(b"", error, true)),
            Readiness::Broken(error) => return Ok(Handled::End(End::Fatal(error))),
        }
        let verdict = self.judge.verdict(sql);
        let admitted = verdict.steps.iter().all(|step| matches!(step, Step::Admit(_)));
        let refused = matches!(&verdict.steps[..], [Step::Refuse(_)]);
        if self.is_mapped() && self.may_be_passed_over() {
            // What becomes of the unnamed statement hangs on whether it runs.
            return Ok(Handled::Wait);
        }
        if !(refused && self.at_rest())
            && let Some(handled) = self.unleased(b'Q', b"", sql)
        {
            return Ok(handled);
        }
        if verdict.steps.is_empty() {
            self.judge.count_empty();
            self.lease.outbound.query(&Permit::empty());
            self.expect(Expect::Query(Change::None));
            self.end_query();
            return Ok(Handled::Done);
        }
        if let [Step::Admit(admitted)] = &verdict.steps[..]
            && verdict.form == Form::Whole
        {
            if self.statements.hangs_on_others(&admitted.effect, &mut self.judge) {
                if self.may_be_passed_over() {
                    return Ok(Handled::Wait);
                }
                if let Err(error) = self.statements.still_admitted(&admitted.effect, &mut self.judge) {
                    return Ok(self.refuse_query(b"", error, false));
                }
            }
            if self.has_limits() && self.may_be_passed_over() {
                // A refusal would have to wait, and is told and counted once.
                return Ok(Handled::Wait);
            }
            match self.alias(&admitted.effect) {
                Ok(false) => {}
                Ok(true) => {
                    // A Query that is passed over would have no answer at all.
                    self.lease.outbound.sync();
                    self.expect(Expect::Own(Own::Sync));
                    self.end_pipeline();
                }
                Err(NotNow::Wait) => return Ok(Handled::Wait),
                Err(NotNow::Never(error)) => return Ok(self.refuse_query(b"", error, false)),
            }
            match self.allowed_query(sql, &verdict.steps) {
                Allowed::Yes => {}
                Allowed::Later => return Ok(Handled::Judging),
                Allowed::No(error) => return Ok(self.refuse_query(b"", error, false)),
            }
            self.judge.count_admitted(admitted.class);
            self.read_next(sql, admitted);
            self.leaves(admitted.leaves_nothing());
            let change = self.change(admitted);
            match self.renamed(admitted) {
                Some(permit) => self.lease.outbound.query(&permit),
                None => self.lease.outbound.query(&admitted.permit),
            }
            self.expect(Expect::Query(change));
            self.end_query();
            return Ok(Handled::Done);
        }
        if self.may_be_passed_over() {
            // The Sync behind what stands for this Query would end the passing over too early.
            return Ok(Handled::Wait);
        }
        if !admitted && let [Step::Refuse(refusal)] = &verdict.steps[..] {
            let always = refusal.stands_in_failed_block();
            let error = self.judge.refused(sql, refusal);
            return Ok(self.refuse_query(b"", error, always));
        }
        match self.allowed_query(sql, &verdict.steps) {
            Allowed::Yes => {}
            Allowed::Later => return Ok(Handled::Judging),
            Allowed::No(error) => return Ok(self.refuse_query(b"", error, false)),
        }
        let unsettled =
            |step: &Step| matches!(step, Step::Admit(admitted) if self.is_unsettled(&admitted.effect));
        if verdict.steps.iter().any(unsettled) {
            return Ok(Handled::Wait);
        }
        let several = verdict.steps.len() > 1;
        let (mut counted, mut characters) = (0, 0);
        for step in &verdict.steps {
            let admitted = match step {
                Step::Admit(admitted) => admitted,
                Step::Refuse(refusal) => {
                    let always = refusal.stands_in_failed_block();
                    let error = self.judge.refused(sql, refusal);
                    self.refuse_here(b"", error, always);
                    break;
                }
            };
            if several && self.judge.is_copy_in(admitted) {
                // The source would take the statements behind it for what is to be copied.
                let error = ClientError::error(
                    SqlState::FEATURE_NOT_SUPPORTED,
                    "COPY FROM STDIN must stand alone in its query",
                );
                self.refuse_here(b"", error, false);
                break;
            }
            if let Err(error) = self.statements.still_admitted(&admitted.effect, &mut self.judge) {
                self.refuse_here(b"", error, false);
                break;
            }
            // Where one before it in this text drops the name, there is none when this one runs.
            if let Err(NotNow::Never(error)) = self.alias(&admitted.effect) {
                self.refuse_here(b"", error, false);
                break;
            }
            self.judge.count_admitted(admitted.class);
            self.leaves(admitted.leaves_nothing());
            let change = self.change(admitted);
            match self.renamed(admitted) {
                Some(permit) => self.lease.outbound.run(&permit),
                None => self.lease.outbound.run(&admitted.permit),
            }
            let between = sql.get(counted..admitted.offset).unwrap_or_default();
            characters += between.iter().filter(|byte| !matches!(byte, 0x80..=0xbf)).count();
            counted = admitted.offset;
            self.expect(Expect::QuietParse(u32::try_from(characters).unwrap_or_default()));
            self.expect(Expect::QuietBind);
            self.expect(Expect::QuietDescribe);
            self.read_next(sql, admitted);
            self.expect(Expect::Execute(change));
        }
        // A Query leaves neither an unnamed portal nor an unnamed statement behind.
        self.lease.outbound.close(Target::Portal(b""));
        self.expect(Expect::QuietClose(0));
        self.leftover.left();
        self.lease.outbound.sync();
        self.expect(Expect::Sync);
        self.end_query();
        Ok(Handled::Done)
    }

    /// What stands for a refused statement, in its place.
    fn refuse_here(&mut self, name: &[u8], error: ClientError, always: bool) {
        if name.is_empty() {
            self.lose_unnamed();
        }
        self.lease.outbound.refused(name);
        self.expect(Expect::Refused(Box::new(Refused { error, always })));
    }

    /// An error in the place of a whole Query or FunctionCall; the caller knows that the source does not
    /// pass over it.
    fn refuse_query(&mut self, name: &[u8], error: ClientError, always: bool) -> Handled {
        if self.at_rest() {
            if name.is_empty() {
                self.leftover.left();
                self.lose_unnamed();
            }
            self.edit(|out| {
                error.encode(out);
                backend::ready_for_query(Status::Idle, out);
            });
            return Handled::Done;
        }
        if name.is_empty() {
            self.leftover.gone();
        }
        self.refuse_here(name, error, always);
        self.lease.outbound.sync();
        self.expect(Expect::Sync);
        self.end_query();
        Handled::Done
    }

    /// PostgreSQL's answer to a body that does not hold what its type promises; it goes on behind it.
    fn refuse_malformed(&mut self, kind: u8) -> Handled {
        let error = ClientError::error(SqlState::PROTOCOL_VIOLATION, "invalid message format");
        match kind {
            b'Q' | b'F' if self.may_be_passed_over() => Handled::Wait,
            b'Q' | b'F' => self.refuse_query(OWN_NAME, error, true),
            _ => self.refuse_extended(OWN_NAME, error, true),
        }
    }

    /// An error in the place of one extended message; everything up to Sync is passed over.
    pub(super) fn refuse_extended(&mut self, name: &[u8], error: ClientError, always: bool) -> Handled {
        if self.at_rest() {
            if name.is_empty() {
                self.leftover.left();
                self.lose_unnamed();
            }
            self.skip = Skip::Local;
            self.edit(|out| error.encode(out));
        } else {
            // The name is the client's, and nothing of it reaches the source; only whether there is one
            // matters to the unnamed statement.
            self.refuse_here(if name.is_empty() { name } else { OWN_NAME }, error, always);
            self.pipeline = true;
            self.skip = Skip::Upstream;
        }
        Handled::Done
    }

    /// A refused statement takes the unnamed one with it, as PostgreSQL drops that before it looks at the new text.
    fn lose_unnamed(&mut self) {
        if self.is_mapped() {
            self.statements.forget_unnamed();
            self.unnamed_is_here(false);
        }
    }

    fn handle_parse(&mut self, parse: frontend::Parse<'_>) -> Result<Handled, Malformed> {
        match self.judge.readiness(parse.sql) {
            Readiness::Now => {}
            Readiness::Wait => return Ok(Handled::Judging),
            Readiness::Busy(error) => return Ok(self.refuse_extended(parse.name, error, true)),
            Readiness::Broken(error) => return Ok(Handled::End(End::Fatal(error))),
        }
        let verdict = self.judge.verdict(parse.sql);
        let admitted = match &verdict.steps[..] {
            [] => None,
            [Step::Admit(admitted)] => Some(admitted),
            [.., Step::Refuse(refusal)] => {
                let always = refusal.stands_in_failed_block();
                let error = self.judge.refused(parse.sql, refusal);
                return Ok(self.refuse_extended(parse.name, error, always));
            }
            [..] => {
                let error = ClientError::error(
                    SqlState::SYNTAX_ERROR,
                    "cannot insert multiple commands into a prepared statement",
                );
                return Ok(self.refuse_extended(parse.name, error, true));
            }
        };
        if let Err(refusal) = self.judge.parameter_types(parse.types) {
            let error = self.judge.refused(parse.sql, &refusal);
            return Ok(self.refuse_extended(parse.name, error, false));
        }
        if let Some(handled) = self.unleased(b'P', parse.name, parse.sql) {
            return Ok(handled);
        }
        match admitted.map_or(Allowed::Yes, |admitted| self.allowed_parse(&parse, admitted)) {
            Allowed::Yes => {}
            Allowed::Later => return Ok(Handled::Judging),
            Allowed::No(error) => return Ok(self.refuse_extended(parse.name, error, false)),
        }
        let era = self.judge.era();
        let mut prepared = match admitted {
            None => Prepared {
                permit: Permit::empty(),
                era,
                effect: Effect::None,
                types: parse.types.into(),
                reading: None,
                leaves_nothing: true,
                text: None,
            },
            Some(admitted) => {
                if let Err(error) = self.statements.still_admitted(&admitted.effect, &mut self.judge) {
                    return Ok(self.refuse_extended(parse.name, error, false));
                }
                let permit = self.renamed(admitted).unwrap_or_else(|| admitted.permit.clone());
                let reading = self.judge.reading(parse.sql, parse.sql, admitted.class);
                Prepared {
                    permit,
                    era,
                    effect: admitted.effect.clone(),
                    types: parse.types.into(),
                    reading,
                    leaves_nothing: admitted.leaves_nothing(),
                    text: None,
                }
            }
        };
        let permit = prepared.permit.clone();
        prepared.text = self.text_of(&permit, parse.types, &prepared.effect);
        if !parse.name.is_empty() {
            match self.parse_mapped(parse.name, prepared) {
                Ok(handled) => {
                    if matches!(handled, Handled::Done) && self.skip == Skip::No {
                        self.parse_sent(admitted);
                    }
                    return Ok(handled);
                }
                Err(back) => prepared = *back,
            }
        }
        if let Err(NotNow::Wait) = self.alias(&prepared.effect) {
            return Ok(Handled::Wait);
        }
        self.prepares();
        let ticket = match self.statements.parse(parse.name, prepared) {
            Ok(ticket) => ticket,
            Err(full) => return Ok(self.full(parse.name, full)),
        };
        self.parse_sent(admitted);
        self.lease.outbound.parse(parse.name, &permit, parse.types);
        if parse.name.is_empty() {
            self.unnamed_is_here(true);
        }
        let expect = match ticket {
            Some(ticket) => Expect::Parse(ticket),
            None => Expect::ParseUnnamed(self.leftover.replaced(self.statements.segment())),
        };
        self.expect_extended(expect);
        Ok(Handled::Done)
    }

    /// A Parse of this is sent.
    fn parse_sent(&mut self, admitted: Option<&Admitted>) {
        match admitted {
            None => self.judge.count_empty(),
            Some(admitted) => {
                self.judge.count_admitted(admitted.class);
                self.touches(admitted, false);
                // Its name may come to be with any Execute from now on; a cursor's comes with one and goes
                // with its transaction.
                if let Effect::Prepare { name } = &admitted.effect {
                    let prepared = self.prepared(admitted, Effect::None);
                    self.statements.prepare(name.as_bytes(), prepared);
                }
            }
        }
    }

    /// No room for a statement or portal: what is under way may make some.
    pub(super) fn full(&mut self, name: &[u8], full: Full) -> Handled {
        let error = match full {
            Full::Now if !self.expects.is_empty() => return Handled::Wait,
            Full::Now => ClientError::error(
                SqlState::CONFIGURATION_LIMIT_EXCEEDED,
                "too many prepared statements of one name in this session",
            ),
            Full::Always(error) => error,
        };
        self.refuse_extended(name, error, false)
    }

    fn handle_bind(&mut self, bind: frontend::Bind<'_>, body: &[u8]) -> Result<Handled, Malformed> {
        if let Some(handled) = self.unleased(b'B', OWN_NAME, b"") {
            return Ok(handled);
        }
        if bind.statement.is_empty() && !self.drop_leftover() {
            return Ok(Handled::Wait);
        }
        let mapped = match self.is_mapped() {
            false => None,
            true => match self.named(bind.statement) {
                Named::Is(name, text) => Some((name, text)),
                Named::Wait => return Ok(Handled::Wait),
                Named::Refused(error) => return Ok(self.refuse_extended(OWN_NAME, error, true)),
            },
        };
        let unnamed = match self.statements.bind(bind.statement, bind.portal, &mut self.judge) {
            Ok(unnamed) => unnamed,
            Err(full) => return Ok(self.full(OWN_NAME, full)),
        };
        let text = match mapped {
            Some((name, text)) if bind.statement != name => {
                self.lease.outbound.bind_to(bind.portal, &name, bind.rest);
                text
            }
            _ => {
                self.lease.outbound.bind(body);
                None
            }
        };
        self.expect_extended(Expect::Bind { unnamed, text });
        Ok(Handled::Done)
    }

    fn handle_execute(&mut self, portal: &[u8], body: &[u8]) -> Result<Handled, Malformed> {
        if portal.is_empty()
            && let Some(handled) = self.missing_unnamed_portal()
        {
            return Ok(handled);
        }
        if let Some(handled) = self.unleased(b'E', OWN_NAME, b"") {
            return Ok(handled);
        }
        match self.allowed_execute(portal) {
            Allowed::Yes => {}
            Allowed::Later => return Ok(Handled::Judging),
            Allowed::No(error) => return Ok(self.refuse_extended(OWN_NAME, error, false)),
        }
        let change = match self.statements.execute(portal, &mut self.judge) {
            Ok(only) => {
                self.leaves(only.as_ref().is_some_and(|only| only.leaves_nothing));
                only.map_or(Change::None, |only| self.drops(&only.effect))
            }
            Err(error) => return Ok(self.refuse_extended(OWN_NAME, error, false)),
        };
        if let Some(readings) = &mut self.readings {
            let most = body.last_chunk().map_or(0, |most| u32::from_be_bytes(*most));
            readings.next(self.statements.reading(portal), most);
        }
        self.lease.outbound.execute(body);
        self.expect_extended(Expect::Execute(change));
        Ok(Handled::Done)
    }

    /// PostgreSQL's answer when there is no unnamed portal; nothing when there is one.
    fn missing_unnamed_portal(&mut self) -> Option<Handled> {
        match self.statements.has_unnamed_portal() {
            Ok(true) => None,
            Err(_) if !self.expects.is_empty() => Some(Handled::Wait),
            Ok(false) | Err(_) => {
                let error = ClientError::error(SqlState::INVALID_CURSOR_NAME, "portal \"\" does not exist");
                Some(self.refuse_extended(OWN_NAME, error, true))
            }
        }
    }

    /// Before a message that names the unnamed statement; false: not yet.
    fn drop_leftover(&mut self) -> bool {
        let segment = self.statements.segment();
        match self.leftover.remedy(segment) {
            Remedy::None => true,
            Remedy::Wait => self.expects.is_empty(),
            Remedy::Close => {
                self.lease.outbound.close(Target::Statement(b""));
                let number = self.leftover.replaced(segment);
                self.expect_extended(Expect::QuietClose(number));
                true
            }
        }
    }

    fn change(&mut self, admitted: &Admitted) -> Change {
        match &admitted.effect {
            Effect::Prepare { name } => {
                let prepared = self.prepared(admitted, Effect::None);
                let Some(ticket) = self.statements.prepare(name.as_bytes(), prepared) else {
                    return Change::None;
                };
                if self.is_mapped() {
                    self.statements.told_about(&ticket.0, false);
                }
                Change::Prepared(ticket)
            }
            Effect::Declare { name, hold } => {
                let prepared = self.prepared(admitted, Effect::None);
                self.statements.declare(name.as_bytes(), *hold, Arc::new(prepared));
                Change::None
            }
            effect => self.drops(effect),
        }
    }

    fn prepared(&self, admitted: &Admitted, effect: Effect) -> Prepared {
        let era = self.judge.era();
        Prepared {
            permit: admitted.permit.clone(),
            era,
            effect,
            types: Box::default(),
            reading: None,
            leaves_nothing: false,
            text: None,
        }
    }

    /// What is gone when a statement with this effect succeeds.
    fn drops(&self, effect: &Effect) -> Change {
        match effect {
            Effect::Deallocate { .. } | Effect::DeallocateAll | Effect::Close { .. } => {
                Change::Dropped(Box::new((effect.clone(), self.statements.now())))
            }
            Effect::None
            | Effect::Prepare { .. }
            | Effect::Execute { .. }
            | Effect::Declare { .. }
            | Effect::Fetch { .. }
            | Effect::ApplicationName { .. } => Change::None,
        }
    }

    pub(super) fn changed(&mut self, change: Change, succeeded: bool) {
        match change {
            Change::None => {}
            Change::Prepared(ticket) => {
                self.statements.parsed(Some(&ticket), succeeded);
                self.statements.heard_about(&ticket.0);
            }
            Change::Dropped(dropped) if succeeded => {
                self.deallocated(&dropped.0);
                self.statements.dropped(&dropped.0, dropped.1);
            }
            Change::Dropped(_) => {}
        }
    }

    /// SET application_name keeps the gateway's prefix, so that the source's own views say who it is.
    fn renamed(&self, admitted: &Admitted) -> Option<Permit> {
        match &admitted.effect {
            Effect::ApplicationName { value } => Some(Permit::application_name(&self.name_prefix, value)),
            _ => None,
        }
    }

    /// Messages during COPY … FROM STDIN of a writer; false: not one of them.
    fn handle_copy_in(&mut self, kind: u8, body: &[u8]) -> bool {
        match kind {
            b'd' => {
                if let Some(copy_in) = &self.copy_in {
                    self.lease.outbound.copy_data(copy_in, body);
                }
            }
            b'c' => {
                if let Some(copy_in) = self.copy_in.take() {
                    self.lease.outbound.copy_done(copy_in);
                }
            }
            b'f' => {
                if let Some(copy_in) = self.copy_in.take() {
                    self.lease.outbound.copy_fail(copy_in, body);
                }
            }
            b'H' | b'S' => {} // the source passes over both while it copies
            _ => return false,
        }
        true
    }
}

/// The end of a client that begins a transaction and gets no session for it. PostgreSQL never answers BEGIN with an ERROR,
/// so drivers count a block before they have their answer (psycopg 3 fails an assertion at its next one); PgBouncer ends
/// the session here, too.
fn turned_away(error: ClientError) -> Handled {
    Handled::End(End::Fatal(ClientError { severity: Severity::Fatal, ..error }))
}

fn begins_block(kind: u8, body: &[u8]) -> bool {
    let sql = match kind {
        b'Q' => frontend::query(body).ok(),
        b'P' => frontend::parse(body).ok().map(|parse| parse.sql),
        _ => None,
    };
    sql.is_some_and(tag::begins_block)
}

fn known(kind: u8) -> bool {
    b"QPBDECFHSXdcf".contains(&kind)
}

fn longest(kind: u8, limit: usize) -> usize {
    match kind {
        b'D' | b'C' | b'E' | b'H' | b'S' | b'X' | b'c' => SMALL.min(limit),
        _ => limit,
    }
}

/// The messages that PostgreSQL takes from a client whose session is open.
fn is_known(kind: u8) -> bool {
    matches!(kind, b'Q' | b'F' | b'X' | b'P' | b'B' | b'C' | b'D' | b'E' | b'H' | b'S' | b'd' | b'c' | b'f')
}
