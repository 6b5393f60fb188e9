//go:build !go1.27

package main

// verifyLattice refuses: this Go has no ML-DSA.
func (w *witness) verifyLattice([]byte, uint64, []byte) bool { return false }
