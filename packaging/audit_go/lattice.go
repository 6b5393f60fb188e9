//go:build go1.27

package main

import (
	"crypto/mldsa"
	"encoding/base64"
	"encoding/binary"
	"strconv"
	"strings"
)

// verifyLattice checks an ML-DSA-44 cosignature: over the whole tree as a subtree from leaf 0.
func (w *witness) verifyLattice(text []byte, at uint64, signature []byte) bool {
	lines := strings.Split(string(text), "\n")
	if len(lines) != 4 {
		return false
	}
	size, err := strconv.ParseUint(lines[1], 10, 63)
	if err != nil {
		return false
	}
	root, err := base64.StdEncoding.DecodeString(lines[2])
	if err != nil {
		return false
	}
	message := []byte("subtree/v1\n\x00")
	message = append(append(message, byte(len(w.name))), w.name...)
	message = binary.BigEndian.AppendUint64(message, at)
	message = append(append(message, byte(len(lines[0]))), lines[0]...)
	message = binary.BigEndian.AppendUint64(message, 0)
	message = binary.BigEndian.AppendUint64(message, size)
	message = append(message, root...)
	key, err := mldsa.NewPublicKey(mldsa.MLDSA44(), w.public)
	return err == nil && mldsa.Verify(key, message, signature, nil) == nil
}
