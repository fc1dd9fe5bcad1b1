//! Which modules in which clusters, with which storage accounts, take data from where it is to who asks for it.
//!
//! Invariant: pure, exact and deterministic. What is chosen honours every restriction and costs least of all ways of at
//! most [`MOST_STEPS`] modules; of equal ones the shorter is chosen, and of equally long ones the first by name.

use std::cmp::{Ordering, Reverse};
use std::collections::{BTreeMap, HashMap};
use std::fmt;

use serde_json::{Value, json};

use super::decision::{Capability, Decision, Deploy, Outcome};
use super::infrastructure::{AttributeValue, Infrastructure, InfrastructureObject as Object};
use super::resources::{Account, Cluster, Interface, Module, ModuleCapability, Resources};
use super::restriction::{Found, Restriction, Unmet, lookup};
use super::strategy::{Direction, Goal};

/// Modules that data may pass through; the original takes two. It also ends chains that lead back to where they began.
pub const MOST_STEPS: usize = 3;
/// Actions that one dataset may need.
const MOST_ACTIONS: usize = 31;
/// What stands for an attribute that a resource does not have: as bad as its scale goes.
const WORST: f64 = 100.0;
/// Costs are counted in millionths, so that sums are exact and the same on every machine.
const PARTS: f64 = 1e6;
/// Regions between which all transfers are worked out beforehand.
const TABLED: usize = 1_000;
/// Candidates that one explanation lists, of each kind.
const LISTED: usize = 1_000;

/// What is to be made possible.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Request {
    /// As messages shall name it.
    pub dataset: String,
    /// `read`, `write`, `copy` or `delete`.
    pub usage: String,
    /// How the data is reached where it is.
    pub asset: Interface,
    /// Where it is; empty: not known.
    pub region: String,
    /// What the workload asks for; None: whatever there is.
    pub workload: Option<Interface>,
    /// What has to be done to the data on its way, such as masking.
    pub actions: Vec<String>,
}

impl Request {
    /// What an input document of the policies says; where the data is reached and what has to be done to it stand
    /// beside it.
    pub fn of_input(input: &Value, asset: Interface, actions: Vec<String>) -> Self {
        let text = |path: &str| input.pointer(path).and_then(Value::as_str).unwrap_or_default().to_owned();
        let protocol = text("/request/interface/protocol");
        let workload = (!protocol.is_empty())
            .then(|| Interface { protocol, dataformat: text("/request/interface/dataformat") });
        Self {
            dataset: text("/request/datasetID"),
            usage: text("/request/usage"),
            asset,
            region: text("/request/dataset/geography"),
            workload,
            actions,
        }
    }
}

/// What there is to choose from.
#[derive(Clone, Copy, Debug)]
pub struct Landscape<'l> {
    pub resources: &'l Resources,
    pub infrastructure: &'l Infrastructure,
}

/// One module at work.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    pub capability: Capability,
    pub module: String,
    /// Which entry of the module's `capabilities`.
    pub entry: usize,
    pub scope: String,
    pub cluster: String,
    /// Where a copy is put.
    pub account: Option<String>,
    pub source: Interface,
    pub sink: Interface,
    pub actions: Vec<String>,
}

/// The way that was chosen.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    pub steps: Vec<Step>,
    /// The weighted, normalised sum of the goals, in millionths.
    pub cost: i128,
}

impl Plan {
    pub fn to_json(&self) -> Value {
        let steps: Vec<Value> = self
            .steps
            .iter()
            .map(|step| {
                let mut value = json!({
                    "capability": step.capability.as_str(), "module": step.module, "scope": step.scope,
                    "cluster": step.cluster, "actions": step.actions,
                    "source": step.source.to_string(), "sink": step.sink.to_string(),
                });
                if let (Some(account), Some(value)) = (&step.account, value.as_object_mut()) {
                    value.insert("storageaccount".to_owned(), json!(account));
                }
                value
            })
            .collect();
        json!({"steps": steps, "cost": self.cost as f64 / PARTS})
    }

    /// Where the transformations are made; empty when there are none to make.
    pub fn transforming(&self) -> impl Iterator<Item = &Step> {
        self.steps.iter().filter(|step| !step.actions.is_empty())
    }
}

/// A candidate that was not taken, and why.
#[derive(Clone, Debug, PartialEq)]
pub struct RuledOut {
    /// `module`, `cluster` or `storageaccount`.
    pub kind: &'static str,
    pub name: String,
    pub capability: Capability,
    /// One for each reason; with the policy where a policy is the reason.
    pub reasons: Vec<String>,
}

impl fmt::Display for RuledOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} for {}: {}", self.kind, self.name, self.capability, self.reasons.join("; "))
    }
}

/// Why there is no way.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{message}")]
pub struct NoPlan {
    pub message: String,
    /// The policy that decided it by itself.
    pub policy: Option<String>,
    pub ruled_out: Vec<RuledOut>,
}

impl NoPlan {
    fn says(message: String) -> Self {
        Self { message, policy: None, ruled_out: Vec::new() }
    }

    pub fn to_json(&self) -> Value {
        json!({
            "message": self.message,
            "policy": self.policy,
            "ruled_out": self.ruled_out.iter().map(|out| json!({
                "kind": out.kind, "name": out.name, "capability": out.capability.as_str(), "reasons": out.reasons,
            })).collect::<Vec<_>>(),
        })
    }
}

/// Chooses.
///
/// # Errors
/// Why nothing fits.
pub fn plan(request: &Request, outcome: &Outcome, landscape: Landscape<'_>) -> Result<Plan, NoPlan> {
    let usage = Capability::of(&request.usage).filter(|usage| *usage != Capability::Transform);
    let Some(usage) = usage else {
        return Err(NoPlan::says(format!("the usage \"{}\" is not known", request.usage)));
    };
    if request.actions.len() > MOST_ACTIONS {
        return Err(NoPlan::says(format!("more than {MOST_ACTIONS} actions are asked for")));
    }
    if landscape.resources.modules.is_empty() {
        return Err(NoPlan::says("There are no deployed modules in the environment".to_owned()));
    }
    let planner = Planner::new(request, outcome, landscape, usage);
    planner.refused()?;
    planner.search().ok_or_else(|| planner.explain())
}

/// Numbers of a step, in the order in which equal ways are compared; lists of resources are sorted by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Choice {
    module: usize,
    entry: usize,
    /// Which of the entry's interfaces.
    pair: usize,
    cluster: usize,
    account: Option<usize>,
}

/// Steps, compared by name first; of ways through the same modules, the one that transforms earlier comes first.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Way {
    choices: Vec<Choice>,
    /// For each step, bits of the actions that are done there.
    done: Vec<Reverse<u32>>,
}

impl Way {
    fn and(&self, choice: Choice, done: u32) -> Self {
        Self {
            choices: self.choices.iter().copied().chain([choice]).collect(),
            done: self.done.iter().copied().chain([Reverse(done)]).collect(),
        }
    }
}

/// What has become of the data after some steps; where it is stands beside it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct State {
    interface: Interface,
    /// Actions still to be done.
    left: u32,
    copied: bool,
}

/// A place that the data has come to, by some steps and one whose module is not chosen yet.
#[derive(Clone, Copy)]
struct Arrival<'w> {
    /// Where the data is then.
    region: usize,
    cost: i128,
    way: &'w Way,
    cluster: usize,
    account: Option<usize>,
}

impl<'w> Arrival<'w> {
    /// Which one is better under any module: as [`Way`] would have it behind the step.
    fn order(&self, other: &Self) -> Ordering {
        let key = |one: &Arrival<'w>| (one.cost, &one.way.choices, one.cluster, one.account, &one.way.done);
        key(self).cmp(&key(other))
    }

    fn by(&self, option: &ModuleOption) -> Onward<'w> {
        Onward {
            cost: self.cost + option.cost,
            way: self.way,
            choice: Choice {
                module: option.module,
                entry: option.entry,
                pair: option.pair,
                cluster: self.cluster,
                account: self.account,
            },
            done: Reverse(option.done),
        }
    }
}

/// One step more.
#[derive(Clone, Copy)]
struct Onward<'w> {
    cost: i128,
    way: &'w Way,
    choice: Choice,
    done: Reverse<u32>,
}

impl Onward<'_> {
    fn way(&self) -> Way {
        self.way.and(self.choice, self.done.0)
    }

    fn order(&self, way: &Way) -> Ordering {
        let choices = self.way.choices.iter().chain([&self.choice]).cmp(&way.choices);
        choices.then_with(|| self.way.done.iter().chain([&self.done]).cmp(&way.done))
    }

    fn is_better(&self, other: &Self) -> bool {
        let key = |one: &Self| (one.cost, &one.way.choices, one.choice, &one.way.done, one.done);
        key(self) < key(other)
    }
}

/// An entry of a module that may be used, before a cluster is chosen.
struct Usable<'l> {
    module: usize,
    entry: usize,
    capability: &'l ModuleCapability,
    cost: i128,
    /// Whether it may also do actions.
    may_transform: bool,
}

struct Planner<'l> {
    request: &'l Request,
    landscape: Landscape<'l>,
    usage: Capability,
    decisions: BTreeMap<Capability, Decision>,
    goals: Vec<Pricing<'l>>,
    regions: Vec<&'l str>,
    transfers: Option<Vec<Vec<i128>>>,
}

/// A goal, and the scales of its attribute.
struct Pricing<'l> {
    goal: &'l Goal,
    /// By kind of object, where the attribute is known there.
    scales: BTreeMap<Object, (f64, f64)>,
}

impl<'l> Planner<'l> {
    fn new(request: &'l Request, outcome: &'l Outcome, landscape: Landscape<'l>, usage: Capability) -> Self {
        let decisions = Capability::ALL
            .into_iter()
            .map(|capability| (capability, outcome.decision(capability)))
            .collect();
        let goals = outcome
            .strategies
            .iter()
            .flat_map(|strategy| &strategy.goals)
            .map(|goal| Pricing { goal, scales: scales(landscape.infrastructure, &goal.attribute) })
            .collect();
        let mut regions: Vec<&str> = vec![request.region.as_str()];
        regions.extend(landscape.resources.clusters.iter().map(|cluster| cluster.region.as_str()));
        regions.extend(landscape.resources.accounts.iter().map(|account| account.region.as_str()));
        regions.sort_unstable();
        regions.dedup();
        let mut planner =
            Self { request, landscape, usage, decisions, goals, regions, transfers: Some(Vec::new()) };
        planner.transfers = planner.all_transfers();
        planner
    }

    /// What [`Planner::transfer`] says between all regions, one row for each; empty: they are too many. None: moving data
    /// costs nothing.
    fn all_transfers(&self) -> Option<Vec<Vec<i128>>> {
        if !self.goals.iter().any(|pricing| pricing.scales.contains_key(&Object::InterRegion)) {
            return None;
        }
        let all = 0..self.regions.len();
        let row = |from: usize| all.clone().map(|to| self.transfer(from, to)).collect();
        Some(if all.len() > TABLED { Vec::new() } else { all.clone().map(row).collect() })
    }

    fn decision(&self, capability: Capability) -> &Decision {
        // Every capability was put there.
        self.decisions.get(&capability).unwrap_or(&NOTHING)
    }

    fn deployed(&self, capability: Capability) -> bool {
        self.decision(capability).deploy != Deploy::False
    }

    /// What no choice could change.
    fn refused(&self) -> Result<(), NoPlan> {
        let refusal = |capability: Capability, message: String| NoPlan {
            policy: self.decision(capability).decided_by.as_ref().map(|policy| policy.id.clone()),
            ..NoPlan::says(message)
        };
        let by = |capability: Capability| {
            self.decision(capability).decided_by.as_ref().map_or(String::new(), |policy| {
                let description = if policy.description.is_empty() {
                    String::new()
                } else {
                    format!(" ({})", policy.description)
                };
                format!("policy {}{description}", policy.id)
            })
        };
        if !self.deployed(self.usage) {
            let message = format!("{} does not deploy {}", by(self.usage), self.usage);
            return Err(refusal(self.usage, message));
        }
        if !self.request.actions.is_empty() && !self.deployed(Capability::Transform) {
            let message = format!(
                "{} does not deploy transform, and the data needs {}",
                by(Capability::Transform),
                self.request.actions.join(", ")
            );
            return Err(refusal(Capability::Transform, message));
        }
        for (capability, decision) in &self.decisions {
            if decision.deploy != Deploy::True {
                continue;
            }
            let offered = self
                .landscape
                .resources
                .modules
                .iter()
                .any(|module| module.capabilities.iter().any(|entry| entry.capability == *capability));
            if !offered && (*capability != Capability::Transform || !self.request.actions.is_empty()) {
                let message = format!(
                    "The dataset '{}' requires that the capability '{capability}' will be deployed, but it is not offered by any deployed module",
                    self.request.dataset
                );
                // A module that masks while it reads offers the transformation without the name of it.
                if *capability != Capability::Transform {
                    return Err(refusal(*capability, message));
                }
            }
            let possible = match capability {
                Capability::Transform => true,
                Capability::Copy => matches!(self.usage, Capability::Read | Capability::Copy),
                other => *other == self.usage,
            };
            if !possible {
                let message = format!(
                    "{} deploys {capability}, which is no part of a {} of data",
                    by(*capability),
                    self.usage
                );
                return Err(refusal(*capability, message));
            }
        }
        Ok(())
    }

    fn search(&self) -> Option<Plan> {
        let kinds: Vec<Capability> = match self.usage {
            Capability::Read => vec![Capability::Copy, Capability::Transform, Capability::Read],
            Capability::Copy => vec![Capability::Copy, Capability::Transform],
            other => vec![other],
        };
        let usable: Vec<(Capability, Vec<Usable<'l>>, Places)> = kinds
            .into_iter()
            .filter(|kind| self.deployed(*kind))
            .map(|kind| (kind, self.usable(kind), self.places(kind)))
            .collect();
        let accounts = self.accounts();
        let all = (1u32 << self.request.actions.len()) - 1;
        let start = State { interface: self.request.asset.clone(), left: all, copied: false };
        let begin = (self.region(&self.request.region), (0, Way::default()));
        let mut layer: HashMap<State, BTreeMap<usize, (i128, Way)>> =
            HashMap::from([(start, BTreeMap::from([begin]))]);
        let mut best: Option<(i128, usize, Way)> = None;
        let needs_copy =
            self.usage == Capability::Copy || self.decision(Capability::Copy).deploy == Deploy::True;
        for length in 1..=MOST_STEPS {
            // By region.
            let mut next: HashMap<State, Vec<Option<Onward<'_>>>> = HashMap::new();
            for (state, from) in &layer {
                for (kind, usable, places) in &usable {
                    let copies = *kind == Capability::Copy;
                    // What is read is with the workload; what was deleted is nowhere.
                    let goes_on = matches!(kind, Capability::Copy | Capability::Transform);
                    let goes_on = goes_on && length < MOST_STEPS;
                    if !goes_on && *kind != self.usage {
                        continue;
                    }
                    let options = self.options(*kind, usable, state);
                    if options.is_empty() {
                        continue;
                    }
                    // The same for all modules, however many lead from anywhere to anywhere.
                    let arriving =
                        [&places.plain, &places.transforming].map(|places| self.arrivals(from, places));
                    let mut stored: HashMap<(bool, String), Vec<Arrival<'_>>> = HashMap::new();
                    for option in options {
                        let transforms = option.done != 0 || *kind == Capability::Transform;
                        let [plain, transforming] = &arriving;
                        let arrived = if transforms { transforming } else { plain };
                        let arrived = match copies {
                            true => stored
                                .entry((transforms, option.output.protocol.clone()))
                                .or_insert_with(|| self.stored(arrived, &accounts, &option.output.protocol)),
                            false => arrived,
                        };
                        let after = State {
                            interface: option.output.clone(),
                            left: state.left & !option.done,
                            copied: state.copied || copies,
                        };
                        let ends = *kind == self.usage
                            && after.left == 0
                            && (after.copied || !needs_copy)
                            && self.request.workload.as_ref().is_none_or(|asked| {
                                self.usage != Capability::Read || after.interface.fits(asked)
                            });
                        let onward = arrived.iter().map(|arrival| (arrival.region, arrival.by(&option)));
                        if ends {
                            for (_, onward) in onward.clone() {
                                let better = |(cost, steps, way): &(i128, usize, Way)| {
                                    let order = (onward.cost, length).cmp(&(*cost, *steps));
                                    order.then_with(|| onward.order(way)).is_lt()
                                };
                                if best.as_ref().is_none_or(better) {
                                    best = Some((onward.cost, length, onward.way()));
                                }
                            }
                        }
                        if goes_on {
                            let there = next.entry(after).or_insert_with(|| vec![None; self.regions.len()]);
                            for (region, onward) in onward {
                                if let Some(slot) = there.get_mut(region)
                                    && slot.as_ref().is_none_or(|before| onward.is_better(before))
                                {
                                    *slot = Some(onward);
                                }
                            }
                        }
                    }
                }
            }
            let settled = next.into_iter().map(|(state, regions)| {
                let ways = regions.into_iter().enumerate().filter_map(|(region, onward)| {
                    let onward = onward?;
                    Some((region, (onward.cost, onward.way())))
                });
                (state, ways.collect())
            });
            layer = settled.collect();
        }
        best.map(|(cost, _, way)| self.spell(&way, cost))
    }

    /// How the places are best reached from where the data is, module and account left aside.
    fn arrivals<'w>(
        &self,
        from: &'w BTreeMap<usize, (i128, Way)>,
        places: &[(usize, i128, usize)],
    ) -> Vec<Arrival<'w>> {
        let to = |(region, place_cost, cluster): &(usize, i128, usize),
                  (before, (cost, way)): (&usize, &'w (i128, Way))| Arrival {
            region: *region,
            cost: cost + place_cost + self.transfer(*before, *region),
            way,
            cluster: *cluster,
            account: None,
        };
        if self.transfers.is_none() {
            // Wherever it goes, the best way on is behind the best way here.
            let Some(best) = from.iter().min_by_key(|(_, way)| *way) else { return Vec::new() };
            return places.iter().map(|place| to(place, best)).collect();
        }
        let reached =
            places.iter().filter_map(|place| from.iter().map(|way| to(place, way)).min_by(Arrival::order));
        reached.collect()
    }

    /// The same with accounts of a protocol behind the places.
    fn stored<'w>(&self, arrived: &[Arrival<'w>], accounts: &[Stored], protocol: &str) -> Vec<Arrival<'w>> {
        let fitting = accounts.iter().filter(|account| account.protocol == protocol);
        let stored = fitting.filter_map(|account| {
            let ways = arrived.iter().map(|arrival| Arrival {
                region: account.region,
                cost: arrival.cost + account.cost + self.transfer(arrival.region, account.region),
                account: Some(account.index),
                ..*arrival
            });
            ways.min_by(Arrival::order)
        });
        stored.collect()
    }

    /// The best entries for each interface they lead to and actions they do.
    fn options(&self, kind: Capability, usable: &[Usable<'l>], state: &State) -> Vec<ModuleOption> {
        let mut best: HashMap<(Interface, u32), ModuleOption> = HashMap::new();
        for candidate in usable {
            let capable = self.actions_of(candidate.capability) & state.left;
            let may = candidate.may_transform && self.deployed(Capability::Transform);
            for (pair, output) in self.pairs(kind, candidate.capability, &state.interface) {
                // To do fewer of the actions that are left than it can costs the same and leads less far.
                let doing = [Some(0), (may && capable != 0).then_some(capable)];
                for done in doing.into_iter().flatten() {
                    let option = ModuleOption {
                        cost: candidate.cost,
                        module: candidate.module,
                        entry: candidate.entry,
                        pair,
                        done,
                        output: output.clone(),
                    };
                    let slot = best.entry((output.clone(), done)).or_insert_with(|| option.clone());
                    if option.key() < slot.key() {
                        *slot = option;
                    }
                }
            }
        }
        let mut options: Vec<ModuleOption> = best.into_values().collect();
        options.sort_by_key(ModuleOption::key);
        options
    }

    fn actions_of(&self, capability: &ModuleCapability) -> u32 {
        let bits =
            self.request.actions.iter().enumerate().filter(|(_, action)| capability.actions.contains(action));
        bits.fold(0, |mask, (bit, _)| mask | (1 << bit))
    }

    /// Which of an entry's interfaces take the data, and how it is reached behind each.
    fn pairs(
        &self,
        kind: Capability,
        capability: &ModuleCapability,
        from: &Interface,
    ) -> Vec<(usize, Interface)> {
        let mut found = Vec::new();
        for (index, (source, sink)) in capability.interfaces.iter().enumerate() {
            let output = match kind {
                Capability::Write => {
                    // Data comes from the workload and goes to the asset.
                    let enters = capability.api.as_ref().or(source.as_ref());
                    let asked = self.request.workload.as_ref();
                    let taken = asked.is_none_or(|asked| enters.is_none_or(|enters| enters.fits(asked)));
                    let lands = sink.as_ref().is_some_and(|sink| sink.fits(from));
                    if taken && lands { Some(from.clone()) } else { None }
                }
                _ if !source.as_ref().is_some_and(|source| source.fits(from)) => None,
                Capability::Read => capability.api.clone().or_else(|| sink.clone()),
                Capability::Copy => sink.clone(),
                Capability::Transform => Some(sink.clone().unwrap_or_else(|| from.clone())),
                Capability::Delete => Some(from.clone()),
            };
            if let Some(output) = output {
                found.push((index, output));
            }
        }
        found
    }

    /// The entries of modules that the restrictions on modules leave.
    fn usable(&self, kind: Capability) -> Vec<Usable<'l>> {
        let own = &self.decision(kind).modules;
        let transform = &self.decision(Capability::Transform).modules;
        let mut usable = Vec::new();
        for (index, module) in self.landscape.resources.modules.iter().enumerate() {
            for (entry, capability) in module.capabilities.iter().enumerate() {
                if capability.capability != kind {
                    continue;
                }
                let mut candidate = Candidate::new(|property: &str| {
                    module_property(self.landscape.infrastructure, module, entry, property)
                });
                if !candidate.satisfies(own) {
                    continue;
                }
                let may_transform = candidate.satisfies(transform);
                if kind == Capability::Transform && !may_transform {
                    continue;
                }
                usable.push(Usable {
                    module: index,
                    entry,
                    capability,
                    cost: self.price(Object::Module, &module.name),
                    may_transform,
                });
            }
        }
        usable
    }

    /// The best cluster of each region that the restrictions leave.
    fn places(&self, kind: Capability) -> Places {
        let own = &self.decision(kind).clusters;
        let transform = &self.decision(Capability::Transform).clusters;
        let (mut plain, mut transforming) = (BTreeMap::new(), BTreeMap::new());
        for (index, cluster) in self.landscape.resources.clusters.iter().enumerate() {
            let mut candidate = Candidate::new(|property: &str| {
                cluster_property(self.landscape.infrastructure, cluster, property)
            });
            if !candidate.satisfies(own) {
                continue;
            }
            let found = (self.price(Object::Cluster, &cluster.name), index);
            let region = self.region(&cluster.region);
            let put = |places: &mut BTreeMap<usize, (i128, usize)>| {
                let best = places.entry(region).or_insert(found);
                *best = (*best).min(found);
            };
            put(&mut plain);
            if candidate.satisfies(transform) {
                put(&mut transforming);
            }
        }
        let list = |places: BTreeMap<usize, (i128, usize)>| {
            places.into_iter().map(|(region, (cost, cluster))| (region, cost, cluster)).collect()
        };
        Places { plain: list(plain), transforming: list(transforming) }
    }

    /// The best account of each region and protocol that the restrictions of `copy` leave.
    fn accounts(&self) -> Vec<Stored> {
        let restrictions = &self.decision(Capability::Copy).storage_accounts;
        let mut best: BTreeMap<(usize, &str), (i128, usize)> = BTreeMap::new();
        for (index, account) in self.landscape.resources.accounts.iter().enumerate() {
            let mut candidate = Candidate::new(|property: &str| {
                account_property(self.landscape.infrastructure, account, property)
            });
            if !candidate.satisfies(restrictions) {
                continue;
            }
            let found = (self.price(Object::StorageAccount, &account.name), index);
            let slot = best.entry((self.region(&account.region), account.protocol.as_str())).or_insert(found);
            *slot = (*slot).min(found);
        }
        best.into_iter()
            .map(|((region, protocol), (cost, index))| Stored {
                region,
                protocol: protocol.to_owned(),
                cost,
                index,
            })
            .collect()
    }

    fn region(&self, name: &str) -> usize {
        // Every region was put there.
        self.regions.binary_search(&name).unwrap_or(0)
    }

    /// What a resource adds to the goals.
    fn price(&self, object: Object, name: &str) -> i128 {
        self.goals
            .iter()
            .filter_map(|pricing| {
                let scale = pricing.scales.get(&object)?;
                let attribute = self.landscape.infrastructure.of(object, &pricing.goal.attribute, name);
                Some(cost(pricing.goal, *scale, attribute.map(|attribute| &attribute.value)))
            })
            .sum()
    }

    /// What moving data between regions adds.
    fn transfer(&self, from: usize, to: usize) -> i128 {
        let Some(transfers) = &self.transfers else { return 0 };
        if let Some(known) = transfers.get(from).and_then(|row| row.get(to)) {
            return *known;
        }
        let (Some(from_name), Some(to_name)) = (self.regions.get(from), self.regions.get(to)) else {
            return 0;
        };
        self.goals
            .iter()
            .filter_map(|pricing| {
                let scale = pricing.scales.get(&Object::InterRegion)?;
                let attribute =
                    self.landscape.infrastructure.between(&pricing.goal.attribute, from_name, to_name);
                if from == to && attribute.is_none() {
                    return None;
                }
                Some(cost(pricing.goal, *scale, attribute.map(|attribute| &attribute.value)))
            })
            .sum()
    }

    fn spell(&self, way: &Way, cost: i128) -> Plan {
        let resources = self.landscape.resources;
        let mut from = self.request.asset.clone();
        let mut steps = Vec::with_capacity(way.choices.len());
        for (choice, Reverse(done)) in way.choices.iter().zip(&way.done) {
            let Some(module) = resources.modules.get(choice.module) else { continue };
            let Some(entry) = module.capabilities.get(choice.entry) else { continue };
            let sink = self
                .pairs(entry.capability, entry, &from)
                .into_iter()
                .find(|(pair, _)| *pair == choice.pair)
                .map_or_else(|| from.clone(), |(_, output)| output);
            let actions = self.request.actions.iter().enumerate();
            steps.push(Step {
                capability: entry.capability,
                module: module.name.clone(),
                entry: choice.entry,
                scope: entry.scope.clone(),
                cluster: resources.clusters.get(choice.cluster).map_or(String::new(), |c| c.name.clone()),
                account: choice
                    .account
                    .and_then(|account| resources.accounts.get(account))
                    .map(|a| a.name.clone()),
                source: from.clone(),
                sink: sink.clone(),
                actions: actions
                    .filter(|(bit, _)| done & (1 << bit) != 0)
                    .map(|(_, action)| action.clone())
                    .collect(),
            });
            from = sink;
        }
        Plan { steps, cost }
    }

    /// What ruled out each candidate of the capabilities that were needed.
    fn explain(&self) -> NoPlan {
        let resources = self.landscape.resources;
        let mut needed = vec![self.usage];
        if self.usage == Capability::Read && self.deployed(Capability::Copy) {
            needed.push(Capability::Copy);
        }
        if !self.request.actions.is_empty() {
            needed.push(Capability::Transform);
        }
        let mut ruled_out = Vec::new();
        let (mut offered, mut asked_for) = (false, self.request.workload.is_none());
        for capability in needed {
            let decision = self.decision(capability);
            let confined = self.confined(capability);
            for module in &resources.modules {
                for (entry, offer) in module.capabilities.iter().enumerate() {
                    if offer.capability != capability {
                        continue;
                    }
                    offered |= capability == self.usage;
                    if let Some(asked) = &self.request.workload {
                        asked_for |= offer.api.iter().any(|api| api.fits(asked))
                            || offer.interfaces.iter().any(|(_, sink)| {
                                offer.api.is_none() && sink.as_ref().is_some_and(|sink| sink.fits(asked))
                            });
                    }
                    let candidate = Candidate::new(|property: &str| {
                        module_property(self.landscape.infrastructure, module, entry, property)
                    });
                    let mut reasons = candidate.unmet(&decision.modules);
                    if reasons.is_empty() {
                        reasons = self.misfits(capability, offer);
                        reasons.extend(confined.clone());
                    }
                    self.list(&mut ruled_out, "module", &module.name, capability, reasons);
                }
            }
            for cluster in &resources.clusters {
                let candidate = Candidate::new(|property: &str| {
                    cluster_property(self.landscape.infrastructure, cluster, property)
                });
                let reasons = candidate.unmet(&decision.clusters);
                self.list(&mut ruled_out, "cluster", &cluster.name, capability, reasons);
            }
            if capability == Capability::Copy {
                for account in &resources.accounts {
                    let candidate = Candidate::new(|property: &str| {
                        account_property(self.landscape.infrastructure, account, property)
                    });
                    let reasons = candidate.unmet(&decision.storage_accounts);
                    self.list(&mut ruled_out, "storageaccount", &account.name, capability, reasons);
                }
            }
        }
        let dataset = &self.request.dataset;
        let message = match &self.request.workload {
            _ if !offered => format!(
                "The dataset '{dataset}' requires that the capability '{}' will be deployed, but it is not offered by any deployed module",
                self.usage
            ),
            Some(asked) if !asked_for => {
                format!(
                    "The requested interface ({asked}) is not supported by the deployed modules for dataset '{dataset}'"
                )
            }
            _ if resources.clusters.is_empty() => "There are no clusters to deploy modules in".to_owned(),
            _ => format!(
                "no way of at most {MOST_STEPS} modules leads to a {} of dataset '{dataset}' under all restrictions",
                self.usage
            ),
        };
        ruled_out.sort_by_key(|out| Reverse(out.kind == "module"));
        NoPlan { ruled_out, ..NoPlan::says(message) }
    }

    fn list(
        &self,
        ruled_out: &mut Vec<RuledOut>,
        kind: &'static str,
        name: &str,
        capability: Capability,
        reasons: Vec<String>,
    ) {
        if !reasons.is_empty() && ruled_out.iter().filter(|out| out.kind == kind).count() < LISTED {
            ruled_out.push(RuledOut { kind, name: name.to_owned(), capability, reasons });
        }
    }

    /// Why a module that all restrictions allow does not help.
    fn misfits(&self, capability: Capability, offer: &ModuleCapability) -> Vec<String> {
        let mut reasons = Vec::new();
        if self.pairs(capability, offer, &self.request.asset).is_empty() {
            reasons.push(format!("it does not take the data's interface {}", self.request.asset));
        }
        if capability == Capability::Read
            && let (Some(asked), Some(api)) = (&self.request.workload, &offer.api)
            && !api.fits(asked)
        {
            reasons.push(format!("it offers {api}, and {asked} is asked for"));
        }
        let missing: Vec<&str> = self
            .request
            .actions
            .iter()
            .filter(|action| !offer.actions.contains(action))
            .map(String::as_str)
            .collect();
        if !missing.is_empty() {
            reasons.push(format!("it does not do {}", missing.join(", ")));
        }
        reasons
    }

    /// Why no module does what has to be done to the data, whatever it is: there is no cluster for it.
    fn confined(&self, capability: Capability) -> Option<String> {
        if capability == Capability::Copy
            || self.request.actions.is_empty()
            || !self.places(capability).transforming.is_empty()
        {
            return None;
        }
        let ids: Vec<&str> = self
            .decision(Capability::Transform)
            .clusters
            .iter()
            .map(|restriction| restriction.policy.id.as_str())
            .collect();
        Some(format!(
            "the data needs {}, and no cluster that {} may run in satisfies what restricts transform ({})",
            self.request.actions.join(", "),
            capability,
            ids.join(", ")
        ))
    }
}

static NOTHING: Decision = Decision {
    deploy: Deploy::Unknown,
    policies: Vec::new(),
    decided_by: None,
    modules: Vec::new(),
    clusters: Vec::new(),
    storage_accounts: Vec::new(),
};

/// An entry of a module on the way from one state.
#[derive(Clone)]
struct ModuleOption {
    cost: i128,
    module: usize,
    entry: usize,
    pair: usize,
    done: u32,
    output: Interface,
}

impl ModuleOption {
    fn key(&self) -> (i128, usize, usize, usize, u32) {
        (self.cost, self.module, self.entry, self.pair, self.done)
    }
}

/// Region, cost and number of clusters.
struct Places {
    plain: Vec<(usize, i128, usize)>,
    /// Those that may also transform.
    transforming: Vec<(usize, i128, usize)>,
}

struct Stored {
    region: usize,
    protocol: String,
    cost: i128,
    index: usize,
}

/// One that restrictions are held against; what it has under a property is looked up once, however many restrict it.
struct Candidate<'r, 'v, F> {
    property: F,
    found: HashMap<&'r str, Found<'v>>,
}

impl<'r, 'v, F: Fn(&str) -> Found<'v>> Candidate<'r, 'v, F> {
    fn new(property: F) -> Self {
        Self { property, found: HashMap::new() }
    }

    fn check(&mut self, restriction: &'r Restriction) -> Result<(), Unmet> {
        let Self { property, found } = self;
        restriction
            .check(found.entry(&restriction.property).or_insert_with(|| property(&restriction.property)))
    }

    fn satisfies(&mut self, restrictions: &'r [Restriction]) -> bool {
        restrictions.iter().all(|restriction| self.check(restriction).is_ok())
    }

    /// Why it does not satisfy them, one by one.
    fn unmet(mut self, restrictions: &'r [Restriction]) -> Vec<String> {
        restrictions
            .iter()
            .filter_map(|restriction| {
                let unmet = self.check(restriction).err()?;
                Some(format!(
                    "policy {} ({}) wants {restriction}, and {unmet}",
                    restriction.policy.id, restriction.policy.at
                ))
            })
            .collect()
    }
}

/// An attribute of the module, or what stands in its spec, or in the whole of it.
fn module_property<'v>(
    infrastructure: &'v Infrastructure,
    module: &'v Module,
    entry: usize,
    property: &str,
) -> Found<'v> {
    if let Some(attribute) = infrastructure.of(Object::Module, property, &module.name) {
        return Found::Attribute(&attribute.value);
    }
    let mut found = Vec::new();
    if let Some(below) = property.strip_prefix("capabilities.") {
        // The capability in question, not any of the module's.
        if let Some(capability) = module.capabilities.get(entry) {
            lookup(&capability.description, below, &mut found);
        }
        return Found::Property(found);
    }
    in_description(&module.spec, &module.description, property, &mut found);
    Found::Property(found)
}

fn account_property<'v>(
    infrastructure: &'v Infrastructure,
    account: &'v Account,
    property: &str,
) -> Found<'v> {
    if let Some(attribute) = infrastructure.of(Object::StorageAccount, property, &account.name) {
        return Found::Attribute(&attribute.value);
    }
    let mut found = Vec::new();
    in_description(&account.spec, &account.description, property, &mut found);
    Found::Property(found)
}

fn cluster_property<'v>(
    infrastructure: &'v Infrastructure,
    cluster: &'v Cluster,
    property: &str,
) -> Found<'v> {
    if let Some(attribute) = infrastructure.of(Object::Cluster, property, &cluster.name) {
        return Found::Attribute(&attribute.value);
    }
    let mut found = Vec::new();
    lookup(&cluster.description, property, &mut found);
    Found::Property(found)
}

fn in_description<'v>(spec: &'v Value, whole: &'v Value, property: &str, found: &mut Vec<&'v Value>) {
    lookup(spec, property, found);
    if found.is_empty() {
        lookup(whole, property, found);
    }
    if found.is_empty() && property == "name" {
        lookup(whole, "metadata.name", found);
    }
}

/// Whether any resource of a kind has a property; None when there is no resource of that kind.
pub(super) fn has_property(landscape: Landscape<'_>, object: Object, property: &str) -> Option<bool> {
    let has = |found: Found<'_>| !matches!(found, Found::Property(values) if values.is_empty());
    let infrastructure = landscape.infrastructure;
    let resources = landscape.resources;
    let any = match object {
        Object::Module if !resources.modules.is_empty() => resources.modules.iter().any(|module| {
            (0..module.capabilities.len())
                .any(|entry| has(module_property(infrastructure, module, entry, property)))
        }),
        Object::Cluster if !resources.clusters.is_empty() => {
            resources.clusters.iter().any(|cluster| has(cluster_property(infrastructure, cluster, property)))
        }
        Object::StorageAccount if !resources.accounts.is_empty() => {
            resources.accounts.iter().any(|account| has(account_property(infrastructure, account, property)))
        }
        Object::Module | Object::Cluster | Object::StorageAccount | Object::InterRegion => return None,
    };
    Some(any)
}

/// The scale of an attribute for each kind of object that has it: what is declared, or what there is.
fn scales(infrastructure: &Infrastructure, name: &str) -> BTreeMap<Object, (f64, f64)> {
    let mut found = BTreeMap::new();
    for object in [Object::Module, Object::StorageAccount, Object::Cluster, Object::InterRegion] {
        let Some(named) = infrastructure.named(object, name) else { continue };
        let declared = named.values().filter_map(|attribute| attribute.scale);
        let seen = named.values().filter_map(|attribute| match attribute.value {
            AttributeValue::Numeric(number) => Some((number, number)),
            AttributeValue::Text(_) | AttributeValue::Boolean(_) => None,
        });
        let widest = |one: (f64, f64), other: (f64, f64)| (one.0.min(other.0), one.1.max(other.1));
        if let Some(scale) = declared.reduce(widest).or_else(|| seen.reduce(widest)) {
            found.insert(object, scale);
        }
    }
    found
}

/// `(v - min) * 100 / (max - min)`, or from the other end for `max`, times the weight.
fn cost(goal: &Goal, (min, max): (f64, f64), value: Option<&AttributeValue>) -> i128 {
    let normal = match value {
        Some(AttributeValue::Numeric(number)) if max > min => {
            let part = match goal.direction {
                Direction::Min => number - min,
                Direction::Max => max - number,
            };
            part * 100.0 / (max - min)
        }
        // A scale without width tells nothing apart.
        Some(AttributeValue::Numeric(_)) => 0.0,
        Some(AttributeValue::Text(_) | AttributeValue::Boolean(_)) | None => WORST,
    };
    // A cast saturates, so the extremes of numbers stay in order.
    (normal * goal.weight * PARTS).round() as i64 as i128
}
