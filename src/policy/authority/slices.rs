//! The rules that can bear on an act, so that rules on other partners and acts cost it nothing. A rule is left out
//! only where its scope names another resource or another act, so that it could not apply, nor fail.

use std::collections::HashMap;

use cedar_policy::{ActionConstraint, EntityUid, Policy, PolicySet, ResourceConstraint};

use super::{Action, GATEWAY, Resource};

/// The rules by act and by what it is done to.
pub(super) struct Slices {
    /// Those on one partner by name, with those on any.
    named: HashMap<(Action, String), PolicySet>,
    /// Those on any partner, and those on the gateway.
    others: HashMap<Action, PolicySet>,
    none: PolicySet,
}

impl Slices {
    pub(super) fn of(policies: &PolicySet) -> Self {
        let mut partners: Vec<String> = policies.policies().filter_map(partner_of).collect();
        partners.sort_unstable();
        partners.dedup();
        let (mut named, mut others) = (HashMap::new(), HashMap::new());
        for action in Action::ALL {
            let kind = if action.is_of_partner() { "Partner" } else { "Gateway" };
            let fits = |policy: &&Policy, id: &str| is_on_action(policy, action) && is_on_resource(policy, kind, id);
            let slice = |id: &str| {
                PolicySet::from_policies(policies.policies().filter(|policy| fits(policy, id)).cloned()).ok()
            };
            // Ids were unique in the whole, so they are in each part.
            others.extend(slice(if action.is_of_partner() { "" } else { GATEWAY }).map(|slice| (action, slice)));
            for partner in partners.iter().filter(|_| action.is_of_partner()) {
                named.extend(slice(partner).map(|slice| ((action, partner.clone()), slice)));
            }
        }
        Self { named, others, none: PolicySet::new() }
    }

    /// The rules that can bear on `action` done to `resource`.
    pub(super) fn of_act(&self, action: Action, resource: Resource<'_>) -> &PolicySet {
        let named = match resource {
            Resource::Partner(partner) => self.named.get(&(action, partner.as_str().to_owned())),
            Resource::Gateway => None,
        };
        named.or_else(|| self.others.get(&action)).unwrap_or(&self.none)
    }
}

fn partner_of(policy: &Policy) -> Option<String> {
    match policy.resource_constraint() {
        ResourceConstraint::Eq(uid) if uid.type_name().basename() == "Partner" => Some(uid.id().unescaped().to_owned()),
        _ => None,
    }
}

pub(super) fn is_on_action(policy: &Policy, action: Action) -> bool {
    let is_it = |uid: &EntityUid| uid.id().unescaped() == action.name();
    match policy.action_constraint() {
        ActionConstraint::Any => true,
        ActionConstraint::Eq(uid) => is_it(&uid),
        // Acts have no groups in the schema; one that had would be looked at by Cedar.
        ActionConstraint::In(uids) => uids.iter().any(is_it) || uids.iter().any(|uid| !is_act(uid)),
    }
}

fn is_act(uid: &EntityUid) -> bool {
    Action::ALL.iter().any(|action| action.name() == uid.id().unescaped())
}

fn is_on_resource(policy: &Policy, kind: &str, id: &str) -> bool {
    match policy.resource_constraint() {
        ResourceConstraint::Eq(uid) => uid.type_name().basename() == kind && uid.id().unescaped() == id,
        ResourceConstraint::Is(of) => of.basename() == kind,
        // Whatever may hold of it is left to Cedar.
        ResourceConstraint::Any | ResourceConstraint::In(_) | ResourceConstraint::IsIn(..) => true,
    }
}
