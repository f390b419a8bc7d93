"""What single operations do to a wallet, a file each."""
