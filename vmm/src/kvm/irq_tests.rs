//! The routing table, without KVM.

use super::*;

#[test]
fn the_timer_arrives_at_pin_two_and_messages_come_after_the_pins() {
    let mut routes = Routes::new();
    assert_eq!(routes.allocate(2), 24);
    assert_eq!(routes.allocate(1), 26);
    routes.messages[1] = Some(MsiMessage { address: 0x1_fee0_1004, data: 0x41 });

    let entries = routes.entries();
    let ioapic_pin = |gsi: u32| {
        entries
            .iter()
            .filter(|e| e.gsi == gsi && e.type_ == KVM_IRQ_ROUTING_IRQCHIP)
            // SAFETY: the type says which member of the union is set.
            .map(|e| unsafe { e.u.irqchip })
            .find(|chip| chip.irqchip == KVM_IRQCHIP_IOAPIC)
            .map(|chip| chip.pin)
    };
    assert_eq!(ioapic_pin(0), Some(2));
    assert_eq!(ioapic_pin(2), None);
    assert_eq!(ioapic_pin(23), Some(23));
    let messages: Vec<_> = entries.iter().filter(|e| e.type_ == KVM_IRQ_ROUTING_MSI).collect();
    assert_eq!(messages.len(), 1);
    assert_eq!(messages[0].gsi, 25);
    // SAFETY: the type says which member of the union is set.
    let msi = unsafe { messages[0].u.msi };
    assert_eq!((msi.address_lo, msi.address_hi, msi.data), (0xfee0_1004, 1, 0x41));
}
