package main

import (
	"context"
	"net"
	"os"
	"path/filepath"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	registration "k8s.io/kubelet/pkg/apis/pluginregistration/v1"
)

// A CSI driver that mounts the folder of an agent's socket into pods, read-only, as csi.spiffe.io does on real nodes.
const driverName = "csi.spiffe.io"

func socketDriver() *cobra.Command {
	var sockets, registry, address string
	command := &cobra.Command{
		Use: "socket-driver",
		RunE: func(*cobra.Command, []string) error {
			services := grpc.NewServer()
			it := &driver{sockets: sockets, address: address}
			csi.RegisterIdentityServer(services, it)
			csi.RegisterNodeServer(services, it)
			registration.RegisterRegistrationServer(services, it)
			listener, err := net.Listen("unix", address)
			if err != nil {
				return err
			}
			// The kubelet finds it by a socket in its registry, and is told the address there.
			atRegistry, err := net.Listen("unix", filepath.Join(registry, driverName+"-reg.sock"))
			if err != nil {
				return err
			}
			go services.Serve(atRegistry)
			return services.Serve(listener)
		},
	}
	command.Flags().StringVar(&sockets, "sockets", "", "the folder to mount")
	command.Flags().StringVar(&registry, "registry", "", "the kubelet's plugins_registry")
	command.Flags().StringVar(&address, "address", "", "the driver's own socket")
	return command
}

type driver struct {
	csi.UnimplementedIdentityServer
	csi.UnimplementedNodeServer
	registration.UnimplementedRegistrationServer
	sockets, address string
}

func (d *driver) GetInfo(context.Context, *registration.InfoRequest) (*registration.PluginInfo, error) {
	return &registration.PluginInfo{Type: registration.CSIPlugin, Name: driverName, Endpoint: d.address, SupportedVersions: []string{"1.0.0"}}, nil
}

func (d *driver) NotifyRegistrationStatus(context.Context, *registration.RegistrationStatus) (*registration.RegistrationStatusResponse, error) {
	return &registration.RegistrationStatusResponse{}, nil
}

func (d *driver) GetPluginInfo(context.Context, *csi.GetPluginInfoRequest) (*csi.GetPluginInfoResponse, error) {
	return &csi.GetPluginInfoResponse{Name: driverName, VendorVersion: "1"}, nil
}

func (d *driver) Probe(context.Context, *csi.ProbeRequest) (*csi.ProbeResponse, error) {
	return &csi.ProbeResponse{}, nil
}

func (d *driver) NodeGetInfo(context.Context, *csi.NodeGetInfoRequest) (*csi.NodeGetInfoResponse, error) {
	return &csi.NodeGetInfoResponse{NodeId: "node"}, nil
}

func (d *driver) NodeGetCapabilities(context.Context, *csi.NodeGetCapabilitiesRequest) (*csi.NodeGetCapabilitiesResponse, error) {
	return &csi.NodeGetCapabilitiesResponse{}, nil
}

func (d *driver) NodePublishVolume(_ context.Context, request *csi.NodePublishVolumeRequest) (*csi.NodePublishVolumeResponse, error) {
	if err := os.MkdirAll(request.TargetPath, 0o755); err != nil {
		return nil, err
	}
	if err := unix.Mount(d.sockets, request.TargetPath, "", unix.MS_BIND, ""); err != nil {
		return nil, err
	}
	return &csi.NodePublishVolumeResponse{}, unix.Mount("", request.TargetPath, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, "")
}

func (d *driver) NodeUnpublishVolume(_ context.Context, request *csi.NodeUnpublishVolumeRequest) (*csi.NodeUnpublishVolumeResponse, error) {
	if err := unix.Unmount(request.TargetPath, unix.MNT_DETACH); err != nil && err != unix.EINVAL {
		return nil, err
	}
	return &csi.NodeUnpublishVolumeResponse{}, os.RemoveAll(request.TargetPath)
}
