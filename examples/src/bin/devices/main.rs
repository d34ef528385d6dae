//! Lists this machine's PCI devices: who has each, and whether VFIO can take it now; if not, why, and which commands would make
//! it so. It runs none of them, and takes nothing.

use std::process::ExitCode;

use backend_vfio::{Candidate, Host, parse_address, survey};
use clap::Parser;
use platform::pci::PciAddress;

#[derive(Parser)]
#[command(name = "devices", about = "PCI devices, and whether VFIO can take them")]
struct Arguments {
    /// Only this device, as 0000:01:00.0 or 01:00.0
    #[arg(value_parser = address)]
    device: Option<PciAddress>,
}

fn address(text: &str) -> Result<PciAddress, String> {
    parse_address(text).ok_or_else(|| "an address is written as 0000:01:00.0 or 01:00.0".into())
}

fn main() -> ExitCode {
    let wanted = Arguments::parse().device;
    let all = match survey(&Host::default()) {
        Ok(all) => all,
        Err(error) => {
            eprintln!("error: this system shows no PCI devices: {error}");
            return ExitCode::FAILURE;
        }
    };
    let shown: Vec<_> = all.iter().filter(|it| wanted.is_none_or(|wanted| wanted == it.address)).collect();
    shown.iter().for_each(|candidate| show(candidate));
    match wanted.filter(|_| shown.is_empty()) {
        Some(wanted) => {
            eprintln!("error: there is no PCI function {wanted}");
            ExitCode::FAILURE
        }
        None => {
            let ready = shown.iter().filter(|candidate| candidate.obstacles.is_empty()).count();
            println!("{} functions; VFIO can take {ready} of them now", shown.len());
            ExitCode::SUCCESS
        }
    }
}

fn show(candidate: &Candidate) {
    let (vendor, device) = candidate.id;
    let group = candidate.group.map_or("no group".into(), |group| format!("group {group}"));
    let kind = candidate.domain_type.as_ref().map_or(String::new(), |kind| format!(" ({kind})"));
    let driver = candidate.driver.as_deref().unwrap_or("no driver");
    let class = candidate.class >> 8;
    println!("{} [{class:04x}] {vendor:04x}:{device:04x}  {group}{kind}, {driver}", candidate.address);
    if candidate.obstacles.is_empty() {
        println!("    VFIO can take it");
    }
    for obstacle in &candidate.obstacles {
        println!("    not now: {obstacle}");
        obstacle.remedy().iter().for_each(|command| println!("        {command}"));
    }
}
